//! "Did you mean ...?"

/// `, did you mean X?` for the nearest known name, if it is near.
pub(super) fn did_you_mean(name: &str, known: impl Iterator<Item = String>, dashes: &str) -> String {
    let nearest = known.map(|known| (distance(name, &known), known)).min();
    match nearest {
        Some((distance, known)) if distance <= name.len().max(known.len()) / 3 => {
            format!(", did you mean {dashes}{known}?")
        }
        _ => String::new(),
    }
}

/// Edit distance (insert, delete, replace), case ignored.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
