//! Why no server was found that could be asked, in words.
//!
//! The driver has that as a text only, and nothing is decided by it here: what is not understood is
//! left out. There are host names, ports and what the system says of them in it, and no credentials.

/// So many servers are told of.
const TOLD: usize = 3;
/// What the system says of a server is cut here, in characters.
const WORDS: usize = 100;

const ADVICE: &str = "check host names, ports, TLS and that the replica set has a primary";

/// From the driver's text about a deployment that it found nobody of.
pub fn in_words(text: &str) -> String {
    let Some((_, topology)) = text.split_once("Topology: ") else {
        return format!("no suitable server answers: {ADVICE}");
    };
    let mut parts = topology.split("Address: ");
    let about = parts.next().unwrap_or_default();
    let mut servers: Vec<String> = parts.filter_map(server).collect();
    // The driver has them in no order, and the same trouble must not look like a new one.
    servers.sort();
    if servers.is_empty()
        && let Some(name) = between(about, "Set Name: ", &[",", " }"])
    {
        // It drops those that call their set otherwise, or are in none.
        return format!(
            "no server that it names is a member of a replica set \"{name}\": check replicaSet in the \
             connection string, and that the servers were started with --replSet {name}"
        );
    }
    let more = servers.len().saturating_sub(TOLD);
    servers.truncate(TOLD);
    if more > 0 {
        servers.push(format!("and {more} more"));
    }
    match servers.is_empty() {
        true => format!("no suitable server answers: {ADVICE}"),
        false => format!(
            "no suitable server answers ({}): {ADVICE}",
            servers.join("; ")
        ),
    }
}

/// What is said of one.
fn server(text: &str) -> Option<String> {
    let address = between(text, "", &[", ", " }"])?;
    let trouble = between(text, "I/O error: ", &[" (os error", ", labels"])
        .map(|words| words.chars().take(WORDS).collect::<String>().to_lowercase());
    let trouble = trouble.or_else(|| {
        let is = |type_: &str| text.contains(&format!("Type: {type_}"));
        if is("RsGhost") {
            return Some("its replica set is not initiated, run rs.initiate()".to_owned());
        }
        let is_member = is("RsSecondary") || is("RsArbiter") || is("RsOther");
        is_member.then(|| "is not the primary".to_owned())
    });
    Some(match trouble {
        Some(trouble) => format!("{address}: {trouble}"),
        None => address.to_owned(),
    })
}

/// What is between the one and the first of the others.
fn between<'a>(text: &'a str, start: &str, ends: &[&str]) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    let end = ends.iter().filter_map(|end| rest.find(end)).min()?;
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_is_told_with_its_trouble_in_one_order() {
        let of = |servers: &str| {
            format!(
                "Server selection timeout: No available servers. Topology: {{ Type: \
                 ReplicaSetNoPrimary, Set Name: rs0, Servers: [ {servers} ] }}"
            )
        };
        let lost = |address: &str, why: &str| {
            format!(
                "{{ Address: {address}, Type: Unknown, Error: Kind: I/O error: {why}, labels: \
                 {{\"RetryableError\"}}, source: None, server response: None }}"
            )
        };
        let refused = lost("b:2", "Connection refused (os error 111)");
        let unknown = lost(
            "a:1",
            "failed to lookup address information: Name not known",
        );
        let said = in_words(&of(&[refused.clone(), unknown.clone()].join(", ")));
        assert_eq!(
            said,
            "no suitable server answers (a:1: failed to lookup address information: name not known; \
             b:2: connection refused): check host names, ports, TLS and that the replica set has a \
             primary"
        );
        assert_eq!(said, in_words(&of(&[unknown, refused].join(", "))));

        let second = "{ Address: c:3, Type: RsSecondary, Average RTT: 1ms }";
        let said = in_words(&of(second));
        assert!(said.contains("(c:3: is not the primary)"), "{said}");
        let ghost = "{ Address: d:4, Type: RsGhost, Average RTT: 1ms }";
        assert!(in_words(&of(ghost)).contains("rs.initiate()"));
        let many: Vec<_> = (0..9).map(|n| lost(&format!("h{n}:1"), "x")).collect();
        let said = in_words(&of(&many.join(", ")));
        assert!(said.contains("h2:1: x; and 6 more)"), "{said}");
    }

    #[test]
    fn a_set_of_another_name_is_told_and_what_is_not_understood_left_out() {
        let text = "Server selection timeout: No available servers. Topology: { Type: \
                    ReplicaSetNoPrimary, Set Name: other }";
        let said = in_words(text);
        assert!(said.contains("a replica set \"other\""), "{said}");
        for strange in ["", "Topology: ", "Topology: Address: x", "Address: {{"] {
            let said = in_words(strange);
            assert!(
                said.starts_with("no suitable server answers: check"),
                "{said}"
            );
        }
    }
}
