//! What is attached, as data: addresses, published ports, and who had which address before.
//!
//! Stored (as JSON, one file): everything here. Rebuilt at start: nothing; the kernel is brought to this state instead.
//! No I/O and no clock: the caller gives the instant and writes the result to disk before it acts on it.
//!
//! An address is given in this order: the one the container holds, the one it held before (also after a reboot), one that
//! nobody held, the one released longest ago. A released address rests for [`QUARANTINE`] before another container gets it.

use roble_core::overlay::block::Block;
use roble_core::overlay::plan::Plan;
use roble_core::ports::{PortMapping, Protocol};
use roble_proto::local_net::{Attach, Attached, Tenant};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// How long a released address rests before another container may get it.
pub const QUARANTINE: Duration = Duration::from_secs(60);

/// Version of the stored form; a newer one is refused.
pub const SCHEMA: u32 = 1;

/// Longest container id.
pub const MAX_CONTAINER_LEN: usize = 128;

/// An instant of one boot of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instant {
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// `CLOCK_BOOTTIME` in milliseconds.
    pub boot_ms: u64,
}

impl Instant {
    /// Whether `QUARANTINE` is over at `now` for something that began here. A reboot ends it: no flow survives that.
    fn is_rested(&self, now: &Self) -> bool {
        self.boot_id != now.boot_id || now.boot_ms.saturating_sub(self.boot_ms) >= QUARANTINE.as_millis() as u64
    }
}

/// One attached container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its endpoint address.
    pub address: Ipv4Addr,
    /// Its published ports.
    pub ports: Vec<PortMapping>,
    /// Which instance it is; absent in what the first release wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Tenant>,
}

/// Who held an address last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// The container.
    pub container: String,
    /// When it gave the address back.
    pub released: Instant,
}

/// Why a container cannot be attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedAttach {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Another container publishes the port.
    #[error("port {port}/{protocol} is published by container {owner}")]
    PortTaken {
        /// The port of the node.
        port: u16,
        /// Its transport.
        protocol: Protocol,
        /// Who has it.
        owner: String,
    },
    /// The cluster has not given this node any addresses yet.
    #[error("this node has no block of addresses yet: its cluster has not given one")]
    NoBlock,
    /// Every address is held or rests.
    #[error("no free address in {range}: {held} held, {resting} resting after release")]
    NoAddress {
        /// The node's range.
        range: Block,
        /// Addresses of attached containers.
        held: usize,
        /// Addresses in quarantine.
        resting: usize,
    },
}

/// All attachments of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// [`SCHEMA`] at the time of writing.
    pub schema: u32,
    /// By container id.
    pub attachments: BTreeMap<String, Attachment>,
    /// Addresses held before and not since.
    pub former: BTreeMap<Ipv4Addr, Former>,
    /// The block that all of them are of.
    #[serde(default)]
    pub block: Option<Block>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            attachments: BTreeMap::new(),
            former: BTreeMap::new(),
            block: None,
        }
    }
}

impl State {
    /// Attaches `container`, or changes namespace and ports of one that is attached; its address stays.
    /// Repeating a request changes nothing. On refusal nothing changes.
    ///
    /// # Errors
    /// [`RefusedAttach`].
    pub fn attach(
        &mut self,
        plan: &Plan,
        range: &Block,
        container: &str,
        wish: &Attach,
        now: &Instant,
    ) -> Result<Attached, RefusedAttach> {
        check_container(container)?;
        check_wish(wish)?;
        for (owner, other) in self.attachments.iter().filter(|(owner, _)| *owner != container) {
            if other.netns == wish.netns {
                let netns = wish.netns.display();
                return Err(RefusedAttach::Invalid(format!(
                    "namespace {netns} belongs to container {owner}"
                )));
            }
            let clash = other
                .ports
                .iter()
                .find(|a| wish.ports.iter().any(|b| a.host_key() == b.host_key()));
            if let Some(clash) = clash {
                let (protocol, port) = clash.host_key();
                return Err(RefusedAttach::PortTaken {
                    port,
                    protocol,
                    owner: owner.clone(),
                });
            }
        }
        let address = match self.attachments.get(container) {
            Some(attachment) if range.contains(attachment.address) => attachment.address,
            _ => self.choose_address(range, container, now)?,
        };
        self.former.remove(&address);
        let attachment = Attachment {
            netns: wish.netns.clone(),
            address,
            ports: wish.ports.clone(),
            instance: wish.instance.clone(),
        };
        self.attachments.insert(container.into(), attachment.clone());
        Ok(describe(plan, container, &attachment))
    }

    /// Takes over the block that is told of: addresses come from it from now on. The one before stays while none is told, and
    /// as long as a container has an address outside of the new one: that one is returned then.
    pub fn set_block(&mut self, told: Option<Block>) -> Option<(String, Ipv4Addr)> {
        let told = told?;
        if self.block.is_some_and(|block| block != told) {
            let mut attachments = self.attachments.iter();
            let outside = attachments.find(|(_, attachment)| !told.contains(attachment.address));
            if let Some((container, attachment)) = outside {
                return Some((container.clone(), attachment.address));
            }
        }
        self.block = Some(told);
        None
    }

    /// Removes `container` and lets its address rest. Returns whether it was attached.
    pub fn detach(&mut self, container: &str, now: &Instant) -> bool {
        let Some(attachment) = self.attachments.remove(container) else {
            return false;
        };
        let former = Former {
            container: container.into(),
            released: now.clone(),
        };
        self.former.insert(attachment.address, former);
        true
    }

    /// Ports in `wish` that `container` does not hold yet: those that a program of the node may already use.
    pub fn new_ports(&self, container: &str, wish: &Attach) -> Vec<PortMapping> {
        let held: BTreeSet<_> = self
            .attachments
            .get(container)
            .into_iter()
            .flat_map(|attachment| attachment.ports.iter().map(PortMapping::host_key))
            .collect();
        wish.ports
            .iter()
            .filter(|port| !held.contains(&port.host_key()))
            .copied()
            .collect()
    }

    /// Everything attached, by container id.
    pub fn list(&self, plan: &Plan) -> Vec<Attached> {
        self.attachments
            .iter()
            .map(|(container, attachment)| describe(plan, container, attachment))
            .collect()
    }

    /// Addresses released less than [`QUARANTINE`] ago: nothing may flow to them.
    pub fn resting(&self, now: &Instant) -> BTreeSet<Ipv4Addr> {
        self.former
            .iter()
            .filter(|(_, former)| !former.released.is_rested(now))
            .map(|(address, _)| *address)
            .collect()
    }

    fn choose_address(&self, range: &Block, container: &str, now: &Instant) -> Result<Ipv4Addr, RefusedAttach> {
        let held: BTreeSet<_> = self.attachments.values().map(|attachment| attachment.address).collect();
        let own = self.former.iter().find(|(address, former)| {
            former.container == container && range.contains(**address) && !held.contains(*address)
        });
        if let Some((address, _)) = own {
            return Ok(*address);
        }
        if let Some(address) = range
            .addresses()
            .find(|a| !held.contains(a) && !self.former.contains_key(a))
        {
            return Ok(address);
        }
        // Those of an earlier boot count as released first of all.
        let age = |former: &Former| (former.released.boot_id == now.boot_id, former.released.boot_ms);
        self.former
            .iter()
            .filter(|(address, former)| {
                range.contains(**address) && !held.contains(*address) && former.released.is_rested(now)
            })
            .min_by_key(|(address, former)| (age(former), **address))
            .map(|(address, _)| *address)
            .ok_or_else(|| RefusedAttach::NoAddress {
                range: *range,
                held: held.len(),
                resting: self.resting(now).len(),
            })
    }
}

fn describe(plan: &Plan, container: &str, attachment: &Attachment) -> Attached {
    Attached {
        container: container.into(),
        netns: attachment.netns.clone(),
        address: attachment.address.into(),
        address_v6: Some(plan.endpoint_v6(attachment.address).into()),
        resolv_conf: None,
        ports: attachment.ports.clone(),
    }
}

/// Refuses ids that cannot be a path segment or a log field.
///
/// # Errors
/// [`RefusedAttach::Invalid`].
pub fn check_container(container: &str) -> Result<(), RefusedAttach> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if container.is_empty() || container.len() > MAX_CONTAINER_LEN || !container.bytes().all(allowed) {
        return Err(RefusedAttach::Invalid(format!(
            "a container id has 1 to {MAX_CONTAINER_LEN} characters out of A-Z a-z 0-9 . _ -"
        )));
    }
    Ok(())
}

fn check_wish(wish: &Attach) -> Result<(), RefusedAttach> {
    if !wish.netns.is_absolute() {
        return Err(RefusedAttach::Invalid(
            "the path of the namespace must be absolute".into(),
        ));
    }
    let mut seen = BTreeSet::new();
    match wish.ports.iter().find(|port| !seen.insert(port.host_key())) {
        Some(twice) => Err(RefusedAttach::Invalid(format!(
            "port {}/{} is asked for twice",
            twice.host, twice.protocol
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
