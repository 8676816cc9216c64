//! Who reaches which topic: every form of topic by every identity, publishing and subscribing, at the embedded broker and by
//! the access list written for Mosquitto; and a table of them at the real Mosquitto.
//!
//! The embedded broker ties a client to its branch. Mosquitto knows a node by its certificate only, so that a node's two
//! clients reach each other's topics; never another node's.

use std::collections::BTreeSet;

use roble_core::ids::{ClusterId, NodeId, RawId};
use roble_daemon::pki::Identity;
use roble_proto::topics::{ALL_DOWN, ALL_UP, Branch, Direction, Topic, may_use};

use super::embedded::node_of;
use super::mosquitto::{access_list, cluster_user, node_user};
use super::suite::node;

const BRANCHES: [Branch; 2] = [Branch::Engine, Branch::Net];

fn cluster(number: u8) -> ClusterId {
    ClusterId(RawId::from_bytes([number; 12]))
}

const HERE: u8 = 0xcc;
const ELSEWHERE: u8 = 0xdd;

/// Somebody who may try.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    /// A node that was admitted here.
    Node(NodeId),
    /// A node of this cluster that was not admitted, or was put out.
    Out(NodeId),
    /// A node of another cluster, perhaps with the id of one of ours.
    Foreign(NodeId),
    /// This cluster itself.
    Cluster,
    /// Another cluster.
    OtherCluster,
    /// The root.
    Root,
    /// A user of the root, or whoever has no certificate.
    Nobody(&'static str),
}

impl Who {
    fn all() -> Vec<Self> {
        vec![
            Self::Node(node(1)),
            Self::Node(node(2)),
            Self::Out(node(3)),
            Self::Foreign(node(1)),
            Self::Cluster,
            Self::OtherCluster,
            Self::Root,
            Self::Nobody("admin"),
            Self::Nobody(""),
        ]
    }

    fn certificate(&self) -> Option<Identity> {
        let node = |cluster: ClusterId, node: &NodeId| Identity::node(&cluster.to_string(), &node.to_string()).ok();
        match self {
            Self::Node(id) | Self::Out(id) => node(cluster(HERE), id),
            Self::Foreign(id) => node(cluster(ELSEWHERE), id),
            Self::Cluster => Identity::cluster(&cluster(HERE).to_string()).ok(),
            Self::OtherCluster => Identity::cluster(&cluster(ELSEWHERE).to_string()).ok(),
            Self::Root => Some(Identity::Root),
            Self::Nobody(_) => None,
        }
    }

    /// As Mosquitto calls it: the common name in its certificate.
    fn user(&self) -> String {
        match self {
            Self::Node(id) | Self::Out(id) => node_user(cluster(HERE), *id),
            Self::Foreign(id) => node_user(cluster(ELSEWHERE), *id),
            Self::Cluster => cluster_user(cluster(HERE)),
            Self::OtherCluster => cluster_user(cluster(ELSEWHERE)),
            Self::Root => "root".to_owned(),
            Self::Nobody(name) => (*name).to_owned(),
        }
    }

    /// What must hold for a topic, without wildcards in it.
    fn should(&self, direction: Direction, name: &str) -> bool {
        let topic = Topic::parse(name);
        match self {
            Self::Node(id) => topic.is_some_and(|topic| topic.node == *id && topic.direction == direction),
            _ => false,
        }
    }
}

/// Every name of up to four levels of words that mean something or look like it, and what hangs on to the real ones.
fn names() -> BTreeSet<String> {
    let first_level = |number| {
        let topic = Topic {
            node: node(number),
            branch: Branch::Engine,
            direction: Direction::Up,
        };
        topic.to_string().trim_end_matches("/e/u").to_owned()
    };
    let (one, two) = (first_level(1), first_level(2));
    let shouted = one.to_uppercase();
    let words = ["r", "", "$SYS", "x", &one, &two, &shouted, "e", "n", "u", "d", "+", "#"];
    let mut names = BTreeSet::new();
    let mut longest: Vec<String> = words.map(str::to_owned).to_vec();
    for _ in 1..4 {
        names.extend(longest.iter().cloned());
        longest = longest
            .iter()
            .flat_map(|name| words.map(|word| format!("{name}/{word}")))
            .collect();
    }
    names.extend(longest);
    for number in 1..=3 {
        for branch in BRANCHES {
            for direction in [Direction::Up, Direction::Down] {
                let node = node(number);
                let real = Topic {
                    node,
                    branch,
                    direction,
                }
                .to_string();
                names.extend(words.map(|word| format!("{real}/{word}")));
                names.extend(words.map(|word| format!("{word}/{real}")));
                names.extend([
                    format!("$share/g/{real}"),
                    format!(" {real}"),
                    format!("{real} "),
                    format!("{real}\0"),
                    real.to_uppercase(),
                    real,
                ]);
            }
        }
    }
    names
}

fn has_wildcard(name: &str) -> bool {
    name.contains(['+', '#'])
}

#[test]
fn the_embedded_broker_gives_nobody_what_is_not_his() {
    for who in Who::all() {
        let certified = who.certificate().and_then(|identity| node_of(cluster(HERE), &identity));
        // Whoever was put out is refused before: see `suite`, a_revoked_node_is_put_out_and_stays_out.
        let admitted = certified.filter(|_| !matches!(who, Who::Out(_)));
        assert_eq!(admitted.is_some(), matches!(who, Who::Node(_)), "{who:?}");
        let Some(id) = admitted else { continue };
        let mut reached = 0;
        for name in names() {
            for branch in BRANCHES {
                for direction in [Direction::Up, Direction::Down] {
                    let may = may_use(id, branch, direction, &name);
                    let own = Topic {
                        node: id,
                        branch,
                        direction,
                    };
                    assert_eq!(
                        may,
                        name == own.to_string(),
                        "{who:?} {branch:?} {direction:?} {name:?}"
                    );
                    assert!(!may || who.should(direction, &name));
                    reached += u32::from(may);
                }
            }
        }
        assert_eq!(reached, 4, "{who:?}: up and down, engine and net");
    }
}

/// One user's lines of an access list, read as Mosquitto's manual says.
struct Rules(Vec<(bool, String)>);

impl Rules {
    fn of(list: &str, user: &str) -> Self {
        let mut rules = Vec::new();
        let mut current = None;
        for line in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line.split_once(' ') {
                Some(("user", name)) => current = Some(name),
                Some(("topic", rule)) if current == Some(user) => match rule.split_once(' ') {
                    Some(("read", filter)) => rules.push((false, filter.to_owned())),
                    Some(("write", filter)) => rules.push((true, filter.to_owned())),
                    _ => panic!("a rule that is not understood: {line}"),
                },
                Some(("topic", _)) => assert!(current.is_some(), "a rule for everybody: {line}"),
                _ => panic!("a line that is not understood: {line}"),
            }
        }
        Self(rules)
    }

    fn allow(&self, write: bool, topic: &str) -> bool {
        self.0
            .iter()
            .any(|(may_write, filter)| *may_write == write && is_match(filter, topic))
    }
}

/// Section 4.7 of the standard.
fn is_match(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

#[test]
fn the_access_list_gives_nobody_what_is_not_his() {
    let list = access_list(cluster(HERE), &BTreeSet::from([node(1), node(2)]));
    let names = names();
    for who in Who::all() {
        let rules = Rules::of(&list, &who.user());
        assert_eq!(
            rules.0.is_empty(),
            !matches!(who, Who::Node(_) | Who::Cluster),
            "{who:?}"
        );
        // Subscribing is granted to all by Mosquitto; what counts is what is delivered, whatever the filter was. So both
        // questions are about names without wildcards: nobody can publish to the others.
        for name in names.iter().filter(|name| !has_wildcard(name)) {
            for (write, direction) in [(true, Direction::Up), (false, Direction::Down)] {
                let should = match who {
                    // The other end. Levels that no node may write, as empty ones, are read in vain.
                    Who::Cluster => is_match(if write { ALL_DOWN } else { ALL_UP }, name),
                    _ => who.should(direction, name),
                };
                assert_eq!(rules.allow(write, name), should, "{who:?} writes {write} {name:?}");
            }
        }
    }
    // What the cluster hears was said by the node that the topic names.
    let cluster_rules = Rules::of(&list, &cluster_user(cluster(HERE)));
    for name in names
        .iter()
        .filter(|name| !has_wildcard(name) && cluster_rules.allow(false, name))
    {
        for who in Who::all() {
            if Rules::of(&list, &who.user()).allow(true, name) {
                let of = Topic::parse(name).map(|topic| topic.node);
                assert!(
                    matches!(who, Who::Node(id) if Some(id) == of),
                    "{who:?} speaks on {name}"
                );
            }
        }
    }
}
