//! Which instances the addresses for closest and least used lead to, from what was measured. No I/O.
//!
//! Closest: the instances on the node with the shortest round-trip time. Another node takes over only if it is better by a
//! fifth and by a millisecond, or if the chosen one has nothing ready any more, so that two nodes of about the same distance do
//! not take turns. A node that does not answer counts as farther than all that do. Least used: the instances with the fewest
//! flows from this node, within a quarter.

use roble_core::ids::{NodeId, ServiceId};
use roble_core::overlay::plan::Plan;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// What a new measurement counts against all before it: 1 in so many.
const SMOOTHING: u32 = 4;
/// A node must be nearer by so much to take over.
const GAIN: Duration = Duration::from_millis(1);
/// Probes without an answer after which a node counts as silent.
const SILENT_AFTER: u32 = 3;

#[derive(Debug, Clone, Copy, Default)]
struct Distance {
    rtt: Option<Duration>,
    /// In a row.
    unanswered: u32,
    probes: u64,
    lost: u64,
}

/// What is known of other nodes and flows, and what was chosen. See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Nearness {
    distances: BTreeMap<NodeId, Distance>,
    flows: BTreeMap<IpAddr, u32>,
    chosen: BTreeMap<ServiceId, NodeId>,
}

impl Nearness {
    /// A probe of a node came back after `rtt`, or did not.
    pub fn hear(&mut self, node: NodeId, rtt: Option<Duration>) {
        let distance = self.distances.entry(node).or_default();
        distance.probes += 1;
        distance.lost += u64::from(rtt.is_none());
        match (rtt, distance.rtt) {
            (None, _) => {
                distance.unanswered += 1;
                if distance.unanswered >= SILENT_AFTER {
                    distance.rtt = None;
                }
            }
            (Some(rtt), before) => {
                distance.unanswered = 0;
                let smooth = |before: Duration| (before * (SMOOTHING - 1) + rtt) / SMOOTHING;
                distance.rtt = Some(before.map_or(rtt, smooth));
            }
        }
    }

    /// Flows of this node's containers to each endpoint, by addresses of services.
    pub fn set_flows(&mut self, flows: BTreeMap<IpAddr, u32>) {
        self.flows = flows;
    }

    /// Forgets nodes and services that are not told of any more.
    pub fn retain(&mut self, nodes: &BTreeSet<NodeId>, services: &BTreeSet<ServiceId>) {
        self.distances.retain(|node, _| nodes.contains(node));
        self.chosen.retain(|service, _| services.contains(service));
    }

    /// Round-trip time to a node, if it answers.
    pub fn rtt(&self, node: NodeId) -> Option<Duration> {
        self.distances.get(&node)?.rtt
    }

    /// Probes of a node so far, and those without an answer.
    pub fn probes(&self, node: NodeId) -> (u64, u64) {
        let distance = self.distances.get(&node);
        distance.map_or((0, 0), |distance| (distance.probes, distance.lost))
    }

    /// The nearest of the nodes that have something ready of a service; none if nothing is known of any. `own` is here.
    pub fn nearest(&mut self, service: ServiceId, own: Option<NodeId>, ready: &BTreeSet<NodeId>) -> Option<NodeId> {
        let distance = |node: NodeId| {
            if Some(node) == own {
                Some(Duration::ZERO)
            } else {
                self.rtt(node)
            }
        };
        let best = ready.iter().filter_map(|node| Some((distance(*node)?, *node))).min();
        let now = self.chosen.get(&service).copied().filter(|node| ready.contains(node));
        let stays = now.filter(|node| match (distance(*node), best) {
            (Some(now), Some((best, _))) => now < best + GAIN.max(now / 5),
            (None, best) => best.is_none(),
            (Some(_), None) => true,
        });
        let chosen = stays.or(best.map(|(_, node)| node));
        match chosen {
            Some(node) => drop(self.chosen.insert(service, node)),
            None => drop(self.chosen.remove(&service)),
        }
        chosen
    }

    /// Those of `endpoints` with the fewest flows, of both their addresses.
    pub fn idlest(&self, plan: &Plan, endpoints: &[Ipv4Addr]) -> BTreeSet<Ipv4Addr> {
        let of = |address: IpAddr| self.flows.get(&address).copied().unwrap_or(0);
        let flows = |endpoint: &Ipv4Addr| of((*endpoint).into()) + of(plan.endpoint_v6(*endpoint).into());
        let fewest = endpoints.iter().map(flows).min().unwrap_or(0);
        let is_idle = |endpoint: &&Ipv4Addr| flows(endpoint) <= fewest + fewest / 4;
        endpoints.iter().filter(is_idle).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_core::ids::RawId;

    const SERVICE: ServiceId = ServiceId(RawId::MIN);

    const fn node(number: u8) -> NodeId {
        NodeId(RawId::from_bytes([number; 12]))
    }

    const fn ms(ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(ms))
    }

    #[test]
    fn the_nearest_is_chosen_and_stays_while_no_other_is_clearly_nearer() {
        let mut nearness = Nearness::default();
        let all = BTreeSet::from([node(1), node(2)]);
        assert_eq!(nearness.nearest(SERVICE, None, &all), None, "nothing is known");
        nearness.hear(node(1), ms(20));
        assert_eq!(nearness.nearest(SERVICE, None, &all), Some(node(1)));
        nearness.hear(node(2), ms(19));
        assert_eq!(nearness.nearest(SERVICE, None, &all), Some(node(1)), "not by a fifth");
        for _ in 0..20 {
            nearness.hear(node(2), ms(10));
        }
        assert_eq!(nearness.nearest(SERVICE, None, &all), Some(node(2)));
        for _ in 0..20 {
            nearness.hear(node(1), ms(9));
        }
        assert_eq!(
            nearness.nearest(SERVICE, None, &all),
            Some(node(2)),
            "by a millisecond only"
        );
        // Nothing is as near as this node itself.
        assert_eq!(nearness.nearest(SERVICE, Some(node(1)), &all), Some(node(1)));
        let only = BTreeSet::from([node(2)]);
        assert_eq!(
            nearness.nearest(SERVICE, Some(node(1)), &only),
            Some(node(2)),
            "what is not ready is out"
        );
    }

    #[test]
    fn a_silent_node_is_farther_than_all_others_and_one_lost_probe_means_nothing() {
        let mut nearness = Nearness::default();
        let all = BTreeSet::from([node(1), node(2)]);
        nearness.hear(node(1), ms(1));
        nearness.hear(node(2), ms(100));
        assert_eq!(nearness.nearest(SERVICE, None, &all), Some(node(1)));
        nearness.hear(node(1), None);
        nearness.hear(node(1), None);
        assert_eq!(nearness.nearest(SERVICE, None, &all), Some(node(1)));
        nearness.hear(node(1), None);
        assert_eq!(nearness.nearest(SERVICE, None, &all), Some(node(2)));
        assert_eq!(nearness.probes(node(1)), (4, 3));
        nearness.retain(&BTreeSet::new(), &BTreeSet::new());
        assert_eq!(nearness.rtt(node(2)), None);
        assert_eq!(nearness.nearest(SERVICE, None, &all), None);
    }

    #[test]
    fn the_least_used_have_the_fewest_flows_within_a_quarter() {
        let [a, b, c] = [1, 2, 3].map(|last| Ipv4Addr::new(10, 18, 0, last));
        let plan = Plan::default();
        let mut nearness = Nearness::default();
        assert_eq!(nearness.idlest(&plan, &[a, b]), BTreeSet::from([a, b]));
        nearness.set_flows(BTreeMap::from([
            (a.into(), 8),
            (b.into(), 6),
            (plan.endpoint_v6(b).into(), 4),
            (c.into(), 11),
        ]));
        assert_eq!(nearness.idlest(&plan, &[a, b, c]), BTreeSet::from([a, b]));
        nearness.set_flows(BTreeMap::from([(a.into(), 1)]));
        assert_eq!(nearness.idlest(&plan, &[a, b, c]), BTreeSet::from([b, c]));
    }
}
