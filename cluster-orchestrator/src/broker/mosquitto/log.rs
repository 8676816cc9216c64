//! What the child's log says about clients. The lines are those of Mosquitto 2.0.

/// A line that matters.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A client was accepted.
    Connected { client: &'a str, user: &'a str },
    /// A client's connection was closed for a newer one of the same id.
    Replaced { client: &'a str },
    /// A client's connection ended, for whatever reason.
    Disconnected { client: &'a str },
    /// The configuration was read again.
    Reloaded,
    /// A person should look.
    Trouble,
    /// Nothing of interest.
    Other,
}

pub(super) fn parse(line: &str) -> Line<'_> {
    if line == "Reloading config." {
        return Line::Reloaded;
    }
    if let Some(rest) = line.strip_prefix("New client connected from ") {
        return connected(rest).unwrap_or(Line::Other);
    }
    if line.starts_with("Error") || line.starts_with("Warning") {
        return Line::Trouble;
    }
    let Some((client, what)) = line.strip_prefix("Client ").and_then(|rest| rest.split_once(' ')) else {
        return Line::Other;
    };
    if what.starts_with("already connected") {
        Line::Replaced { client }
    } else if ["disconnected", "closed its connection", "has exceeded timeout"]
        .iter()
        .any(|end| what.starts_with(end))
    {
        Line::Disconnected { client }
    } else {
        Line::Other
    }
}

/// `<address> as <client id> (p2, c1, k60, u'<user>').`
fn connected(rest: &str) -> Option<Line<'_>> {
    let (_address, rest) = rest.split_once(" as ")?;
    let (client, details) = rest.rsplit_once(" (p")?;
    let (_, user) = details.rsplit_once("u'")?;
    let user = user.strip_suffix("').")?;
    Some(Line::Connected { client, user })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_2_0() {
        let connected = "New client connected from 127.0.0.1:47 as 01/e (p2, c1, k60, u'n-01.c-02').";
        for (line, meaning) in [
            (
                connected,
                Line::Connected {
                    client: "01/e",
                    user: "n-01.c-02",
                },
            ),
            (
                "New client connected from 127.0.0.1:47 as x (p2, c1, k60).",
                Line::Other,
            ),
            ("New connection from 127.0.0.1:47 on port 1.", Line::Other),
            (
                "Client 01/e already connected, closing old connection.",
                Line::Replaced { client: "01/e" },
            ),
            ("Client 01/e disconnected.", Line::Disconnected { client: "01/e" }),
            (
                "Client 01/e closed its connection.",
                Line::Disconnected { client: "01/e" },
            ),
            (
                "Client 01/e has exceeded timeout, disconnecting.",
                Line::Disconnected { client: "01/e" },
            ),
            (
                "Client 01/e disconnected due to protocol error.",
                Line::Disconnected { client: "01/e" },
            ),
            ("Reloading config.", Line::Reloaded),
            ("Error: Address already in use", Line::Trouble),
            ("", Line::Other),
            ("Client ", Line::Other),
        ] {
            assert_eq!(parse(line), meaning, "{line}");
        }
    }
}
