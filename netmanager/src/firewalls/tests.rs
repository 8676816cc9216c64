use super::*;

fn packet(hook: &'static str, port: (&'static str, u16)) -> Packet {
    Packet {
        what: "a packet",
        hook,
        links: [Some("rbl-0".into()), Some("rbl-1".into())],
        ends: [[10, 18, 0, 2].into(), [10, 18, 0, 3].into()],
        port,
        is_translated: false,
    }
}

/// Whether the conditions of a rule hold for a UDP packet to port 53 between two containers.
fn holds(rule: &str) -> Option<bool> {
    apply(&words(&format!("{rule} drop")), &packet("forward", ("udp", 53))).0
}

#[test]
fn conditions_hold_do_not_or_are_not_understood() {
    for rule in [
        "",
        "counter packets 0 bytes 0",
        "counter",
        "iifname \"rbl-*\"",
        "iifname { \"eth0\", \"rbl-*\" } oifname != \"docker0\"",
        "meta l4proto udp udp dport 53",
        "udp dport { 50-52, 53 }",
        "ip saddr 10.18.0.0/16 ip daddr 10.18.0.1-10.18.0.9",
        "ip daddr != 127.0.0.0/8",
        "ct state { new, invalid }",
        "ct state new,untracked",
        "ct status != dnat",
        "fib daddr type unicast",
        "meta nfproto ipv4 comment \"of drop and accept\" log prefix \"[UFW BLOCK] \"",
    ] {
        assert_eq!(holds(rule), Some(true), "{rule}");
    }
    for rule in [
        "iifname \"docker0\"",
        "iifname \"rbl-0\" oifname != \"rbl-1\"",
        "ct state established,related",
        "ct status dnat",
        "meta l4proto { icmp, ipv6-icmp }",
        "icmp type echo-request",
        "tcp dport 53",
        "udp dport 54-60",
        "udp sport 67 udp dport 68",
        "ip6 daddr ::/0",
        "ip saddr 10.18.0.3",
        "fib daddr type local",
        "meta mark 7 iifname \"lo\"",
        "limit rate 3/minute iifname \"lo\"",
    ] {
        assert_eq!(holds(rule), Some(false), "{rule}");
    }
    for rule in [
        "limit rate 3/minute",
        "meta mark 7",
        "ip saddr @people",
        "udp dport domain",
        "iifname vmap { x : drop }",
    ] {
        assert_eq!(holds(rule), None, "{rule}");
    }
}

#[test]
fn chains_are_walked_to_the_rule_or_the_policy() {
    let mut tables = Tables::default();
    tables.read_listed(
        "table ip a {\n\tchain F {\n\t\ttype filter hook forward priority filter; policy drop;\n\t\tjump over\n\t\tgoto end\n\t\taccept\n\t}\n\
         \tchain over {\n\t\tudp dport 1 accept\n\t\tudp dport 2 return\n\t\tudp dport 3 drop\n\t\tmeta mark 1 accept\n\t}\n\
         \tchain end {\n\t\tudp dport 4 return\n\t\tudp dport 5 reject\n\t}\n}\n\
         table ip6 b {\n\tchain F {\n\t\ttype filter hook forward priority 0; policy drop;\n\t}\n}\n\
         table inet c {\n\tchain N {\n\t\ttype nat hook forward priority 0; policy drop;\n\t}\n}\n",
    );
    let by = |port| {
        let drops = tables.drops(&packet("forward", ("udp", port)));
        drops
            .into_iter()
            .map(|drop| (drop.chain, drop.rule, drop.is_sure))
            .collect::<Vec<_>>()
    };
    assert_eq!(by(1), []);
    assert_eq!(by(2), [("F".to_owned(), None, true)]);
    assert_eq!(by(3), [("over".into(), Some("udp dport 3 drop".into()), true)]);
    assert_eq!(by(4), [("F".into(), None, false)], "a mark may let it pass");
    assert_eq!(by(5), [("end".into(), Some("udp dport 5 reject".into()), false)]);
    assert!(tables.drops(&packet("input", ("udp", 2))).is_empty());
}

#[test]
fn rules_of_the_older_iptables_are_read_in_translation() {
    let mut tables = Tables::default();
    tables.read_translated(
        "# Translated by iptables-restore-translate\nadd table ip filter\n\
         add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }\nadd chain ip filter DOCKER-USER\n\
         add rule ip filter FORWARD counter jump DOCKER-USER\nadd rule ip filter DOCKER-USER iifname \"rbl-7\" counter accept\n",
        " of iptables-legacy",
    );
    let drops = tables.drops(&packet("forward", ("tcp", 1)));
    assert_eq!(drops.len(), 1);
    assert_eq!(
        (drops[0].table.as_str(), &drops[0].rule),
        ("ip filter of iptables-legacy", &None)
    );
    assert!(advice(&tables, &drops[0].table, "forward", None).starts_with("iptables -I DOCKER-USER"));
}

#[test]
fn strange_text_is_no_harm() {
    for text in [
        "",
        "table x {\nchain y {\n\"\n{\n}}",
        "chain z {\ntype filter hook forward",
        "a {\" !=",
        "ip saddr",
        "udp dport !=",
    ] {
        let mut tables = Tables::default();
        tables.read_listed(text);
        tables.read_translated(text, "");
        tables.drops(&packet("forward", ("udp", 1)));
        apply(&words(text), &packet("forward", ("udp", 1)));
    }
}
