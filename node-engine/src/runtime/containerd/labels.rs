//! Labels of a container: what a later process of the engine must know of it.

use crate::runtime::{ContainerState, RunOrder, RunningInstance};
use roble_core::version::{Epochs, Generation, Version};
use std::collections::HashMap;

const ORGANIZATION: &str = "roble.organization";
const INSTANCE: &str = "roble.instance";
const PATH: &str = "roble.path";
const GENERATION: &str = "roble.generation";
const EPOCHS: &str = "roble.epochs";
const SPEC_HASH: &str = "roble.spec-hash";
const IMAGE_DIGEST: &str = "roble.image-digest";
const NETNS: &str = "roble.netns";
const STOP_SIGNAL: &str = "roble.stop-signal";

/// The labels of the container of `order`.
pub(super) fn of(order: &RunOrder, stop_signal: u32) -> HashMap<String, String> {
    let mut labels = HashMap::from([
        (ORGANIZATION.to_owned(), order.spec.organization.to_string()),
        (INSTANCE.to_owned(), order.instance.to_string()),
        // containerd takes 4096 bytes for key and value.
        (PATH.to_owned(), order.spec.path.chars().take(256).collect()),
        (GENERATION.to_owned(), order.version.generation.to_string()),
        (EPOCHS.to_owned(), order.version.epochs.to_string()),
        (SPEC_HASH.to_owned(), order.spec_hash()),
        (IMAGE_DIGEST.to_owned(), order.image_digest.clone()),
        (STOP_SIGNAL.to_owned(), stop_signal.to_string()),
    ]);
    if let Some(netns) = &order.netns {
        labels.insert(NETNS.to_owned(), netns.display().to_string());
    }
    labels
}

/// The version in the labels; the lowest one if they are damaged, so that any order replaces the container.
pub(super) fn version(labels: &HashMap<String, String>) -> Version {
    let parse = || {
        let generation = Generation(labels.get(GENERATION)?.parse().ok()?);
        let counts = labels.get(EPOCHS)?.split('.').filter(|count| !count.is_empty());
        let epochs = Epochs(counts.map(|count| count.parse().ok()).collect::<Option<_>>()?);
        Some(Version { generation, epochs })
    };
    parse().unwrap_or_default()
}

/// The signal that asks the process to stop.
pub(super) fn stop_signal(labels: &HashMap<String, String>) -> u32 {
    labels
        .get(STOP_SIGNAL)
        .and_then(|signal| signal.parse().ok())
        .unwrap_or(15)
}

/// The list entry of a container of ours; `None` if it is not ours.
pub(super) fn entry(id: &str, labels: &HashMap<String, String>, state: ContainerState) -> Option<RunningInstance> {
    let text = |key: &str| labels.get(key).cloned().unwrap_or_default();
    Some(RunningInstance {
        instance: id.parse().ok()?,
        version: version(labels),
        spec_hash: text(SPEC_HASH),
        image_digest: text(IMAGE_DIGEST),
        netns: labels.get(NETNS).map(Into::into),
        state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_back_and_damage_is_the_lowest_version() {
        let labels = |generation: &str, epochs: &str| {
            HashMap::from([
                (GENERATION.to_owned(), generation.to_owned()),
                (EPOCHS.to_owned(), epochs.to_owned()),
            ])
        };
        let full = Version {
            generation: Generation(3),
            epochs: Epochs(vec![1, 12]),
        };
        assert_eq!(version(&labels("3", "1.12")), full);
        assert_eq!(
            version(&labels("3", "")),
            Version {
                epochs: Epochs::default(),
                ..full
            }
        );
        for damaged in [labels("x", "1"), labels("3", "1.x"), HashMap::new()] {
            assert_eq!(version(&damaged), Version::default());
        }
    }
}
