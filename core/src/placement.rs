//! Placement, the same on every tier: filter, score, pick. A decision carries its reasons.
//!
//! The problem: an instance asks for [`Resources`], ports and a place that satisfies its constraints. A child offers
//! classes of nodes. Filters refuse a child with a [`Refusal`]; the survivors are ordered by [`Score`], whose field order
//! is the policy: first spread (fewest instances of the same service, so that one dead child takes few), then best fit
//! (least left over, so that big instances still find room), then the id, so that ties are stable.

use crate::ids::ChildId;
use crate::labels::{ARCH, Labels};
use crate::ports::Protocol;
use crate::resources::Resources;
use crate::spec::InstanceSpec;
use crate::status::Reason;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How many of the largest free nodes an offer lists.
pub const LARGEST_FREE: usize = 8;
/// How many refused children an explanation names.
pub const EXAMPLES: usize = 10;

/// Which tier decides: it says which half of the constraints applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The root places on clusters.
    Clusters,
    /// A cluster places on nodes.
    Nodes,
}

/// One class of nodes of a child: all nodes with the same labels. A node offers exactly one class of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Labels that all nodes of the class carry, [`ARCH`] among them.
    pub labels: Labels,
    /// How many nodes.
    pub count: u32,
    /// What all of them together may give away, reserved or not.
    pub allocatable: Resources,
    /// What the nodes with most room have free, at most [`LARGEST_FREE`], largest memory first.
    pub largest_free: Vec<Resources>,
}

/// What a child says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Its name, unique among its siblings.
    pub name: String,
    /// Its own labels (of a cluster; a node's are in its offer).
    pub labels: Labels,
    /// Address at which its published ports are reached, for people.
    pub address: String,
    /// What it can run: `container`, ...
    pub virtualizations: Vec<String>,
    /// Its classes of nodes.
    pub offers: Vec<Offer>,
    /// Software version.
    pub software: String,
    /// Another number: what it refused before it may take now, though its offers are the same (what ran below it unknown to
    /// it has ended).
    #[serde(default)]
    pub revision: u64,
}

/// Whether a child may be given something new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It may.
    Ready,
    /// It is silent.
    Silent,
    /// A person said: nothing new.
    Cordoned,
    /// There is no block of endpoint addresses left for it.
    NoBlock,
    /// It has endpoint addresses for so many instances, and these are there.
    NoAddress(u32),
    /// It has refused this very order before.
    Refused(Reason),
}

/// A child as placement sees it.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Which child.
    pub id: ChildId,
    /// What it says of itself.
    pub profile: &'a Profile,
    /// Sum of what the deciding tier has reserved on it.
    pub reserved: Resources,
    /// Requests given to it that its `largest_free` does not know yet.
    pub unaccounted: Vec<Resources>,
    /// Node ports taken on it (nodes only; a cluster checks its own).
    pub ports: &'a BTreeSet<(Protocol, u16)>,
    /// Instances of the same service already on it.
    pub siblings: u32,
    /// Whether it may be given something.
    pub readiness: Readiness,
}

/// Why a child was refused, as a stable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Silent.
    NotReady,
    /// Cordoned.
    Cordoned,
    /// It has no endpoint addresses to give.
    NoBlock,
    /// All its endpoint addresses are given.
    NoAddress,
    /// It refused this order itself.
    RefusedByChild,
    /// The descriptor names another one.
    OtherName,
    /// A label is missing or different.
    LabelMismatch,
    /// It cannot run this kind of instance.
    NoRuntime,
    /// No node of an allowed architecture.
    WrongArchitecture,
    /// It has no nodes.
    NoNodes,
    /// Not enough CPU free.
    NoCpu,
    /// Not enough memory free.
    NoMemory,
    /// A port of the node is taken.
    PortTaken,
}

impl Refusal {
    /// The stable code.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "not-ready",
            Self::Cordoned => "cordoned",
            Self::NoBlock => "no-block",
            Self::NoAddress => "no-address",
            Self::RefusedByChild => "refused-by-child",
            Self::OtherName => "other-name",
            Self::LabelMismatch => "label-mismatch",
            Self::NoRuntime => "no-runtime",
            Self::WrongArchitecture => "wrong-architecture",
            Self::NoNodes => "no-nodes",
            Self::NoCpu => "no-cpu",
            Self::NoMemory => "no-memory",
            Self::PortTaken => "port-taken",
        }
    }
}

/// One refused child, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Which child.
    pub child: ChildId,
    /// Its name.
    pub name: String,
    /// The code.
    pub refusal: Refusal,
    /// What exactly was missing.
    pub detail: String,
}

/// The rank of a child that passed all filters; smaller is better, fields in order of weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Score {
    /// Instances of the same service there.
    pub siblings: u32,
    /// What would be left over there, in thousandths of its allocatable (mean of CPU and memory).
    pub left_over_permille: u64,
    /// Stable ties.
    pub child: ChildId,
}

/// Why an instance is where it is, or nowhere: kept with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// How many children were looked at.
    pub considered: u32,
    /// The winner's name and score.
    pub chosen: Option<(String, Score)>,
    /// The next best, at most three.
    pub runners_up: Vec<(String, Score)>,
    /// How many were refused, per code.
    pub refused: BTreeMap<Refusal, u32>,
    /// At most [`EXAMPLES`] of them.
    pub examples: Vec<Refused>,
    /// Nothing was chosen anew: the instance was found there and stays.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
}

impl Explanation {
    /// One sentence on why nothing was found, the most frequent reason first.
    pub fn reason(&self) -> Reason {
        if self.considered == 0 {
            return Reason::new("no-candidates", "nothing to place on has joined yet");
        }
        let mut counts: Vec<_> = self.refused.iter().collect();
        counts.sort_by_key(|(refusal, count)| (std::cmp::Reverse(**count), **refusal));
        let code = counts.first().map_or("no-candidates", |(refusal, _)| refusal.as_str());
        let list: Vec<String> = counts
            .iter()
            .map(|(refusal, count)| format!("{count} {}", refusal.as_str()))
            .collect();
        // Why one will not do that was meant says more than that another was not meant.
        let is_meant = |e: &&Refused| !matches!(e.refusal, Refusal::OtherName | Refusal::LabelMismatch);
        let example = self
            .examples
            .iter()
            .find(is_meant)
            .or(self.examples.first())
            .map(|e| format!("; {}: {}", e.name, e.detail))
            .unwrap_or_default();
        Reason::new(
            code,
            format!("0 of {} can take it: {}{example}", self.considered, list.join(", ")),
        )
    }
}

/// Chooses the child for one more instance.
///
/// `candidates`: all children, any order. CPU in thousandths of a core, memory in bytes. The explanation's
/// `chosen` names the winner; the id is returned beside it. Ties go to the lowest id.
pub fn place(level: Level, spec: &InstanceSpec, candidates: &[Candidate<'_>]) -> (Option<ChildId>, Explanation) {
    let mut explanation = Explanation {
        considered: candidates.len() as u32,
        ..Explanation::default()
    };
    let mut ranked: Vec<(Score, &Candidate<'_>)> = Vec::new();
    for candidate in candidates {
        match assess(level, spec, candidate) {
            Ok(score) => ranked.push((score, candidate)),
            Err((refusal, detail)) => {
                *explanation.refused.entry(refusal).or_default() += 1;
                if explanation.examples.len() < EXAMPLES {
                    explanation.examples.push(Refused {
                        child: candidate.id,
                        name: candidate.profile.name.clone(),
                        refusal,
                        detail,
                    });
                }
            }
        }
    }
    ranked.sort_by_key(|(score, _)| *score);
    let mut names = ranked
        .iter()
        .map(|(score, candidate)| (candidate.profile.name.clone(), *score));
    explanation.chosen = names.next();
    explanation.runners_up = names.take(3).collect();
    (ranked.first().map(|(_, candidate)| candidate.id), explanation)
}

/// Filters and scores one child.
///
/// # Errors
/// The first filter that refuses it, and what exactly was missing.
pub fn assess(level: Level, spec: &InstanceSpec, candidate: &Candidate<'_>) -> Result<Score, (Refusal, String)> {
    let profile = candidate.profile;
    match &candidate.readiness {
        Readiness::Ready => {}
        Readiness::Silent => return Err((Refusal::NotReady, "it does not answer".to_owned())),
        Readiness::Cordoned => return Err((Refusal::Cordoned, "it takes nothing new".to_owned())),
        Readiness::NoBlock => {
            let detail = "the ranges of endpoint addresses are used up, there is none for it";
            return Err((Refusal::NoBlock, detail.to_owned()));
        }
        Readiness::NoAddress(most) => {
            let detail = format!("it has endpoint addresses for {most} instances, and as many instances");
            return Err((Refusal::NoAddress, detail));
        }
        Readiness::Refused(reason) => return Err((Refusal::RefusedByChild, reason.to_string())),
    }
    let constraints = &spec.constraints;
    let (name, selector) = match level {
        Level::Clusters => (&constraints.cluster, &constraints.cluster_selector),
        Level::Nodes => (&constraints.node, &Default::default()),
    };
    if let Some(name) = name.as_ref().filter(|name| **name != profile.name) {
        return Err((Refusal::OtherName, format!("the descriptor asks for `{name}`")));
    }
    if let Some((key, value)) = selector.first_mismatch(&profile.labels) {
        return Err((Refusal::LabelMismatch, format!("label {key}={value} is asked for")));
    }
    if !profile.virtualizations.contains(&spec.virtualization) {
        return Err((Refusal::NoRuntime, format!("it cannot run `{}`", spec.virtualization)));
    }
    if profile.offers.iter().all(|offer| offer.count == 0) {
        return Err((Refusal::NoNodes, "it has no nodes".to_owned()));
    }
    let mut nearest = (Refusal::NoNodes, String::new());
    let mut best: Option<u64> = None;
    for offer in profile.offers.iter().filter(|offer| offer.count > 0) {
        match fit(level, spec, offer, candidate) {
            Ok(left_over) => best = Some(best.map_or(left_over, |other| other.min(left_over))),
            Err(refusal) if refusal.0 >= nearest.0 || nearest.1.is_empty() => nearest = refusal,
            Err(_) => {}
        }
    }
    let left_over_permille = best.ok_or(nearest)?;
    if let Some(port) = spec
        .ports
        .iter()
        .find(|port| candidate.ports.contains(&port.host_key()))
    {
        return Err((
            Refusal::PortTaken,
            format!("port {}/{} is taken", port.host, port.protocol),
        ));
    }
    Ok(Score {
        siblings: candidate.siblings,
        left_over_permille,
        child: candidate.id,
    })
}

/// What would be left over (thousandths of the class) if `spec` went to one node of this class.
fn fit(level: Level, spec: &InstanceSpec, offer: &Offer, candidate: &Candidate<'_>) -> Result<u64, (Refusal, String)> {
    let constraints = &spec.constraints;
    if let Some((key, value)) = constraints.node_selector.first_mismatch(&offer.labels) {
        return Err((Refusal::LabelMismatch, format!("label {key}={value} is asked for")));
    }
    let arch = offer.labels.get(ARCH).map(String::as_str).unwrap_or_default();
    if !constraints.architectures.is_empty() && !constraints.architectures.iter().any(|allowed| allowed == arch) {
        let asked = constraints.architectures.join(", ");
        return Err((
            Refusal::WrongArchitecture,
            format!("{asked} is asked for, it is {arch}"),
        ));
    }
    // Of a node everything is known exactly: what this tier reserved. Of a cluster only what its nodes with most room had
    // free when it last said so, less what it was given since: what is reserved there may be on other classes of nodes.
    let free = offer.allocatable.minus(&candidate.reserved);
    let rooms = match level {
        Level::Nodes => vec![free],
        Level::Clusters => rooms_after(&offer.largest_free, &candidate.unaccounted),
    };
    let request = &spec.resources;
    let short = |have: &Resources| {
        if have.cpu_millis < request.cpu_millis {
            Some((
                Refusal::NoCpu,
                format!("{}m CPU asked for, {}m free", request.cpu_millis, have.cpu_millis),
            ))
        } else if have.memory_bytes < request.memory_bytes {
            let mib = |bytes: u64| bytes / (1024 * 1024);
            let (asked, have) = (mib(request.memory_bytes), mib(have.memory_bytes));
            Some((Refusal::NoMemory, format!("{asked} MiB asked for, {have} MiB free")))
        } else {
            None
        }
    };
    let largest = rooms.iter().max_by_key(|room| (room.memory_bytes, room.cpu_millis));
    if !rooms.iter().any(|room| room.covers(request))
        && let Some(refusal) = short(largest.unwrap_or(&Resources::ZERO))
    {
        return Err(refusal);
    }
    let permille = |left: u64, of: u64| left.saturating_mul(1000) / of.max(1);
    let left = free.minus(request);
    Ok(u64::midpoint(
        permille(left.cpu_millis, offer.allocatable.cpu_millis),
        permille(left.memory_bytes, offer.allocatable.memory_bytes),
    ))
}

/// What the nodes have left, if each request in `given` went to the one that then had most.
fn rooms_after(largest: &[Resources], given: &[Resources]) -> Vec<Resources> {
    let mut free = largest.to_vec();
    for request in given {
        if let Some(node) = free
            .iter_mut()
            .filter(|node| node.covers(request))
            .max_by_key(|node| node.memory_bytes)
        {
            *node = node.minus(request);
        }
    }
    free
}

#[cfg(test)]
#[path = "placement_tests.rs"]
pub(crate) mod tests;
