//! Names of applications and services: `^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`, and with a namespace `name.namespace`.

/// Characters of a name, or of a namespace, at most.
pub(super) const MAX_NAME: usize = 40;

/// Why `text` is not a name with an optional namespace, or `None` if it is one.
///
/// A namespace may not be all digits: `app/web.0` is the path of an instance.
pub(super) fn fault(text: &str) -> Option<String> {
    match text.split_once('.') {
        Some((_, namespace)) if namespace.bytes().all(|b| b.is_ascii_digit()) && !namespace.is_empty() => {
            Some("the part behind the dot may not be a number, for `name.0` is an instance".to_owned())
        }
        Some((name, namespace)) => part_fault(name).or_else(|| part_fault(namespace)),
        None => part_fault(text),
    }
}

fn part_fault(part: &str) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if part.is_empty() {
        Some("a name has at least one character".to_owned())
    } else if part.len() > MAX_NAME {
        Some(format!("a name has at most {MAX_NAME} characters"))
    } else if part.starts_with('-') || part.ends_with('-') {
        Some("a name starts and ends with a letter or a digit".to_owned())
    } else if !part.bytes().all(allowed) {
        Some("a name is made of lower-case letters, digits and `-`".to_owned())
    } else {
        None
    }
}

/// What `text` could be called instead, if that is a name.
pub(super) fn suggestion(text: &str) -> Option<String> {
    let joined: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .take(MAX_NAME)
        .collect();
    let trimmed = joined.trim_matches('-').to_owned();
    (fault(&trimmed).is_none() && trimmed != text).then_some(trimmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_names() {
        for good in ["a", "0", "web-1", "a.test", "web.prod-2", &"a".repeat(40)] {
            assert_eq!(fault(good), None, "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a.",
            ".a",
            "a.b.c",
            "web.0",
            "ä",
            &"a".repeat(41),
            "a b",
        ] {
            assert!(fault(bad).is_some(), "{bad}");
        }
        assert_eq!(suggestion("My_App").as_deref(), Some("my-app"));
        assert_eq!(suggestion("___"), None);
    }
}
