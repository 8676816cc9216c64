//! A table of `nft` as data: sets, maps and chains by name; as text for the whole, or for what differs from another one.
//!
//! Differences matter: a chain that is loaded anew forgets whose turn it is, and its counters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Family and name of our table.
pub const TABLE: &str = "inet roble";

/// A set or a map.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Collection {
    /// `set` or `map`.
    kind: &'static str,
    /// What it holds, e.g. `type ipv4_addr : verdict`.
    of: String,
    /// By key; the values of a set are empty.
    elements: BTreeMap<String, String>,
}

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    /// Type, hook and priority; `None` for one that others jump to.
    hook: Option<String>,
    rules: Vec<String>,
}

/// The table. Built anew each time, in any order; equal content is equal text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    counters: BTreeSet<String>,
    collections: BTreeMap<String, Collection>,
    chains: BTreeMap<String, Chain>,
}

impl Ruleset {
    /// Declares a counter that rules and maps refer to by name.
    pub fn counter(&mut self, name: &str) {
        self.counters.insert(name.into());
    }

    /// Declares a set, e.g. of `ifname . ipv4_addr`.
    pub fn set(&mut self, name: &str, of: &str) {
        self.declare("set", name, format!("type {of}"));
    }

    /// Declares a map, e.g. of `ipv4_addr : verdict`.
    pub fn map(&mut self, name: &str, of: &str) {
        self.declare("map", name, format!("type {of}"));
    }

    /// Declares a map from numbers as `numgen` gives them, e.g. to `ip daddr`.
    pub fn numbered(&mut self, name: &str, to: &str) {
        self.declare("map", name, format!("typeof numgen inc mod 2 : {to}"));
    }

    fn declare(&mut self, kind: &'static str, name: &str, of: String) {
        let collection = Collection {
            kind,
            of,
            elements: BTreeMap::new(),
        };
        self.collections.entry(name.into()).or_insert(collection);
    }

    /// Puts an element into a declared set.
    pub fn put(&mut self, name: &str, key: String) {
        self.insert(name, key, String::new());
    }

    /// Puts an element into a declared map; a key that is there keeps its value.
    pub fn insert(&mut self, name: &str, key: String, value: String) {
        let collection = self.collections.get_mut(name).expect("declared before");
        collection.elements.entry(key).or_insert(value);
    }

    /// A chain of a hook, e.g. `filter hook forward priority filter`.
    pub fn base_chain<I: Into<String>>(&mut self, name: &str, hook: &str, rules: impl IntoIterator<Item = I>) {
        let chain = Chain {
            hook: Some(hook.into()),
            rules: rules.into_iter().map(Into::into).collect(),
        };
        self.chains.insert(name.into(), chain);
    }

    /// A chain that others jump to.
    pub fn chain<I: Into<String>>(&mut self, name: &str, rules: impl IntoIterator<Item = I>) {
        let chain = Chain {
            hook: None,
            rules: rules.into_iter().map(Into::into).collect(),
        };
        self.chains.insert(name.into(), chain);
    }

    /// The value of an element of a set or map; of a set's it is empty.
    pub fn element(&self, name: &str, key: &str) -> Option<&str> {
        Some(self.collections.get(name)?.elements.get(key)?)
    }

    /// All elements of a set or map.
    pub fn elements(&self, name: &str) -> impl Iterator<Item = (&str, &str)> {
        let elements = self
            .collections
            .get(name)
            .into_iter()
            .flat_map(|collection| &collection.elements);
        elements.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The rules of a chain; none if it is not there.
    pub fn rules_of(&self, chain: &str) -> &[String] {
        self.chains
            .get(chain)
            .map(|chain| chain.rules.as_slice())
            .unwrap_or_default()
    }

    /// Replaces whatever is there.
    pub fn text(&self) -> String {
        let mut text = format!("{}table {TABLE} {{\n", removal());
        for name in &self.counters {
            let _ = writeln!(text, "\tcounter {name} {{\n\t}}");
        }
        for (name, collection) in &self.collections {
            let _ = writeln!(text, "\t{} {name} {{\n\t\t{}", collection.kind, collection.of);
            if !collection.elements.is_empty() {
                let elements: Vec<_> = collection.elements.iter().map(element).collect();
                let _ = writeln!(text, "\t\telements = {{\n\t\t\t{}\n\t\t}}", elements.join(",\n\t\t\t"));
            }
            text.push_str("\t}\n");
        }
        for (name, chain) in &self.chains {
            let _ = writeln!(text, "\tchain {name} {{");
            if let Some(hook) = &chain.hook {
                let _ = writeln!(text, "\t\ttype {hook}; policy accept;");
            }
            for rule in &chain.rules {
                let _ = writeln!(text, "\t\t{rule}");
            }
            text.push_str("\t}\n");
        }
        text.push_str("}\n");
        text
    }

    /// Makes this of `old`, which is there; what is the same in both is not touched. `None` if it can only be replaced.
    pub fn text_from(&self, old: &Self) -> Option<String> {
        let (mut create, mut remove, mut fill, mut delete) =
            (String::new(), String::new(), String::new(), String::new());
        for name in self.counters.difference(&old.counters) {
            let _ = writeln!(create, "add counter {TABLE} {name}");
        }
        let nothing = BTreeMap::new();
        for (name, new) in &self.collections {
            let before = match old.collections.get(name) {
                Some(old) if (old.kind, &old.of) != (new.kind, &new.of) => return None,
                Some(old) => &old.elements,
                None => {
                    let _ = writeln!(create, "add {} {TABLE} {name} {{ {}; }}", new.kind, new.of);
                    &nothing
                }
            };
            let changed = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| {
                let is_new = |(key, value): &(&String, &String)| b.get(*key) != Some(*value);
                a.iter().filter(is_new).map(element).collect::<Vec<_>>()
            };
            for (verb, elements, text) in [
                ("delete", changed(before, &new.elements), &mut remove),
                ("add", changed(&new.elements, before), &mut fill),
            ] {
                if !elements.is_empty() {
                    let _ = writeln!(text, "{verb} element {TABLE} {name} {{ {} }}", elements.join(", "));
                }
            }
        }
        for (name, new) in &self.chains {
            match old.chains.get(name) {
                Some(old) if old.hook != new.hook => return None,
                Some(old) if old.rules == new.rules => continue,
                Some(_) => drop(writeln!(remove, "flush chain {TABLE} {name}")),
                None => drop(match &new.hook {
                    Some(hook) => writeln!(create, "add chain {TABLE} {name} {{ type {hook}; policy accept; }}"),
                    None => writeln!(create, "add chain {TABLE} {name}"),
                }),
            }
            for rule in &new.rules {
                let _ = writeln!(fill, "add rule {TABLE} {name} {rule}");
            }
        }
        // What others may refer to goes last, and empty.
        for name in gone(&old.chains, &self.chains) {
            let _ = writeln!(remove, "flush chain {TABLE} {name}");
            let _ = writeln!(delete, "delete chain {TABLE} {name}");
        }
        for name in gone(&old.collections, &self.collections) {
            let kind = old.collections[name].kind;
            let _ = writeln!(remove, "flush {kind} {TABLE} {name}");
            let _ = writeln!(delete, "delete {kind} {TABLE} {name}");
        }
        for name in old.counters.difference(&self.counters) {
            let _ = writeln!(delete, "delete counter {TABLE} {name}");
        }
        Some([create, remove, fill, delete].concat())
    }
}

fn element((key, value): (&String, &String)) -> String {
    if value.is_empty() {
        key.clone()
    } else {
        format!("{key} : {value}")
    }
}

fn gone<'a, T>(old: &'a BTreeMap<String, T>, new: &BTreeMap<String, T>) -> BTreeSet<&'a String> {
    old.keys().filter(|name| !new.contains_key(*name)).collect()
}

/// Removes our table, whether it is there or not.
pub fn removal() -> String {
    format!("add table {TABLE}\ndelete table {TABLE}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(elements: &[(&str, &str)], chains: &[(&str, &[&str])]) -> Ruleset {
        let mut ruleset = Ruleset::default();
        ruleset.map("m", "ipv4_addr : verdict");
        for (key, chain) in elements {
            ruleset.insert("m", (*key).into(), format!("goto {chain}"));
        }
        for (name, rules) in chains {
            ruleset.chain(name, rules.iter().copied());
        }
        ruleset
    }

    #[test]
    fn only_what_differs_is_touched() {
        let old = ruleset(
            &[("10.0.0.1", "a"), ("10.0.0.2", "b")],
            &[("a", &["accept"]), ("b", &["drop"])],
        );
        assert_eq!(old.text_from(&old).unwrap(), "");
        let new = ruleset(
            &[("10.0.0.1", "a"), ("10.0.0.2", "c")],
            &[("a", &["accept"]), ("c", &["drop"])],
        );
        let expected = "add chain inet roble c\n\
                        delete element inet roble m { 10.0.0.2 : goto b }\n\
                        flush chain inet roble b\n\
                        add element inet roble m { 10.0.0.2 : goto c }\n\
                        add rule inet roble c drop\n\
                        delete chain inet roble b\n";
        assert_eq!(new.text_from(&old).unwrap(), expected);
        // What a map refers to is there before it, and goes after.
        let mut counting = old.clone();
        counting.counter("c");
        counting.map("n", "ipv4_addr : counter");
        counting.insert("n", "10.0.0.1".into(), "\"c\"".into());
        let expected = "add counter inet roble c\n\
                        add map inet roble n { type ipv4_addr : counter; }\n\
                        add element inet roble n { 10.0.0.1 : \"c\" }\n";
        assert_eq!(counting.text_from(&old).unwrap(), expected);
        let expected = "flush map inet roble n\n\
                        delete map inet roble n\n\
                        delete counter inet roble c\n";
        assert_eq!(old.text_from(&counting).unwrap(), expected);
        assert!(counting.text().contains("\tcounter c {\n\t}\n"));
        let mut other = Ruleset::default();
        other.map("m", "ipv6_addr : verdict");
        assert_eq!(other.text_from(&old), None);
    }
}
