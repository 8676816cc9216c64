//! Driving the daemons: events to tiers, their acts to links, runtimes and users.

use crate::faults::Fault;
use crate::identity::FIRST_REQUEST;
use crate::net::{DOWN, UP};
use crate::node::Op;
use crate::points::Boundary;
use crate::world::{Acts, Ev, Who, World};
use prost::Message;
use rand::Rng;
use roble_cluster::tier as cluster;
use roble_core::ids::NodeId;
use roble_core::tier::{Output, Tier, Write};
use roble_link::set::digest;
use roble_net::tier as net;
use roble_node::tier as node;
use roble_proto::topics::Branch;
use roble_proto::wire;
use roble_root::tier as root;

/// What is given to a daemon.
#[derive(Debug)]
pub enum Input {
    /// Time.
    Tick,
    /// To the root.
    Root(Box<root::Event>),
    /// To a cluster.
    Cluster(Box<cluster::Event>),
    /// To a node.
    Node(Box<node::Event>),
    /// To a net manager.
    Net(Box<net::Event>),
}

impl World {
    /// One event of the queue.
    pub fn happen(&mut self, event: Ev) {
        match event {
            Ev::Tick(who, life) => {
                let due = match who {
                    Who::Root => self.root.next_tick,
                    Who::Cluster(index) => self.clusters[index].daemon.next_tick,
                    Who::Node(index) => self.nodes[index].daemon.next_tick,
                    Who::Net(index) => self.nodes[index].net.daemon.next_tick,
                };
                if life == self.life(who) && due == self.t && self.is_up(who) {
                    self.give(who, Input::Tick);
                }
            }
            Ev::Acts(who, life, acts) => {
                if life == self.life(who) {
                    self.release(who, acts);
                }
            }
            Ev::Start(who) => {
                if !self.is_up(who) && self.is_powered(who) && self.establish(who) {
                    if let Some(member) = self.papers(who).home.clone() {
                        self.take_identity(who, &member);
                    }
                    self.log.line(self.t, format_args!("{who:?} starts"));
                    self.start(who);
                }
            }
            Ev::Dial(link) => self.dial(link),
            Ev::ChildDown(link, connection) => {
                if self.links[link].child == Some(connection) {
                    self.links[link].child = None;
                    let event = match self.child_of(link) {
                        Who::Node(_) => Input::Node(Box::new(node::Event::LinkDown)),
                        Who::Net(_) => Input::Net(Box::new(net::Event::LinkDown)),
                        _ => Input::Cluster(Box::new(cluster::Event::UplinkDown)),
                    };
                    self.give(self.child_of(link), event);
                }
            }
            Ev::ParentDown(link, connection) => {
                if self.links[link].parent == Some(connection) {
                    self.links[link].parent = None;
                    let event = match self.child_of(link) {
                        Who::Node(index) => node_down(self.nodes[index].id, Branch::Engine),
                        Who::Net(index) => node_down(self.nodes[index].id, Branch::Net),
                        Who::Cluster(index) => Input::Root(Box::new(root::Event::Down(self.clusters[index].id))),
                        Who::Root => return,
                    };
                    self.give(self.parent_of(link), event);
                }
            }
            Ev::Frame(link, connection, direction, bytes) => self.arrive(link, connection, direction, bytes),
            Ev::Done(index, op) => self.done(index, op),
            Ev::Exit(index, instance, nonce) => self.exit(index, instance, nonce),
            Ev::List(index, life) => {
                if life == self.nodes[index].daemon.life && self.is_up(Who::Node(index)) {
                    let host = &self.nodes[index];
                    let is_observed = host
                        .daemon
                        .tier
                        .as_ref()
                        .is_some_and(|tier| tier.engine().is_observed());
                    let list = host.list(!is_observed);
                    self.give(Who::Node(index), Input::Node(Box::new(node::Event::Listed(list))));
                    self.push(self.t + 20_000, Ev::List(index, life));
                }
            }
            Ev::Round(index, life) => self.net_round(index, life),
            Ev::Fault(fault) => self.fault(fault),
            Ev::Work(work) => self.work(work),
            Ev::Identity(step) => self.identify(step),
        }
    }

    /// Gives an input to a daemon and takes what it leads to.
    pub fn give(&mut self, who: Who, input: Input) {
        let t = self.t;
        let is_tick = matches!(input, Input::Tick);
        if !is_tick && self.is_up(who) && self.point(who, Boundary::Before) {
            return;
        }
        let rng = &mut self.rng;
        let label = match &input {
            Input::Tick => "tick",
            Input::Root(_) | Input::Cluster(_) | Input::Node(_) | Input::Net(_) => "event",
        };
        let given = match (who, input) {
            (Who::Root, input) => {
                let now = self.root.now(t);
                self.root.tier.as_mut().map(|tier| {
                    let output = match input {
                        Input::Root(event) => tier.on(*event, now, rng),
                        _ => tier.tick(now, rng),
                    };
                    split(output, tier.next_due(), Acts::Root)
                })
            }
            (Who::Cluster(index), input) => {
                let now = self.clusters[index].daemon.now(t);
                self.clusters[index].daemon.tier.as_mut().map(|tier| {
                    let output = match input {
                        Input::Cluster(event) => tier.on(*event, now, rng),
                        _ => tier.tick(now, rng),
                    };
                    split(output, tier.next_due(), Acts::Cluster)
                })
            }
            (Who::Node(index), input) => {
                let now = self.nodes[index].daemon.now(t);
                self.nodes[index].daemon.tier.as_mut().map(|tier| {
                    let output = match input {
                        Input::Node(event) => tier.on(*event, now, rng),
                        _ => tier.tick(now, rng),
                    };
                    split(output, tier.next_due(), Acts::Node)
                })
            }
            (Who::Net(index), input) => {
                let daemon = &mut self.nodes[index].net.daemon;
                let now = daemon.now(t);
                daemon.tier.as_mut().map(|tier| {
                    let output = match input {
                        Input::Net(event) => tier.on(*event, now, rng),
                        _ => tier.tick(now, rng),
                    };
                    split(output, tier.next_due(), Acts::Net)
                })
            }
        };
        let Some((writes, acts, due)) = given else { return };
        let (count, bytes) = summary(&writes);
        self.log.line(
            t,
            format_args!("{who:?} {label}: {count} writes {bytes:016x}, acts {}", acts_len(&acts)),
        );
        self.watch(who);
        self.watch_steps(who, &acts);
        let written = writes.len();
        if written > 0 && self.point(who, Boundary::Decided(written)) {
            return;
        }
        let sync = if writes.is_empty() {
            0
        } else {
            self.rng.random_range(1..self.plan.sync_ms)
        };
        let is_retold = writes.iter().all(|write| write.is_retold);
        let ([before, disk_at], next_tick, due) = match who {
            Who::Root => self.root.take(t, sync, writes, due),
            Who::Cluster(index) => self.clusters[index].daemon.take(t, sync, writes, due),
            Who::Node(index) => self.nodes[index].daemon.take(t, sync, writes, due),
            Who::Net(index) => self.nodes[index].net.daemon.take(t, sync, writes, due),
        };
        // Between beats a net manager has nothing to do.
        let idle = if matches!(who, Who::Net(_)) { 10_000 } else { 1_000 };
        let next = (t + idle).min(due.unwrap_or(u64::MAX).max(t + 1));
        if is_tick || next < next_tick {
            self.tick_at(who, next);
        }
        if acts_len(&acts) > 0 || (written > 0 && self.points.counting) {
            let at = match is_retold {
                _ if self.plan.acts_first => t,
                true => before,
                false => disk_at,
            };
            let life = self.life(who);
            self.push(at, Ev::Acts(who, life, acts));
        }
    }

    /// Performs acts.
    pub fn release(&mut self, who: Who, acts: Acts) {
        let total = acts_len(&acts);
        match acts {
            Acts::Root(acts) => {
                for (done, act) in acts.into_iter().enumerate() {
                    if self.point(who, Boundary::Acts(done, total)) {
                        return;
                    }
                    match act {
                        root::Act::Answer(number, answer) => self.answered(number, answer),
                        root::Act::Send(to, frame) => {
                            if let Some(index) = self.clusters.iter().position(|cluster| cluster.id == to) {
                                self.send(index, DOWN, frame.encode_to_vec());
                            }
                        }
                        root::Act::Expel(_) => {}
                        root::Act::Happened(event, _) => {
                            self.log
                                .detail(self.t, || format!("root: {} {}", event.about, event.message));
                        }
                        root::Act::Violation(what) => self.violate("protocol", what),
                    }
                }
            }
            Acts::Cluster(acts) => {
                for (done, act) in acts.into_iter().enumerate() {
                    if self.point(who, Boundary::Acts(done, total)) {
                        return;
                    }
                    self.cluster_act(who, act);
                }
            }
            Acts::Node(acts) => {
                let Who::Node(index) = who else { return };
                for (done, act) in acts.into_iter().enumerate() {
                    if self.point(who, Boundary::Acts(done, total)) {
                        return;
                    }
                    match act {
                        node::Act::Send(bytes) => {
                            let link = self.link_of(who);
                            self.send(link, UP, bytes);
                        }
                        node::Act::Run(command) => self.run_command(index, command),
                        node::Act::Violation(what) => self.violate("protocol", what),
                        node::Act::CheckMembership => self.push(self.t + 30, Ev::Fault(Fault::Rejoin(index))),
                        node::Act::OpenStream { .. } | node::Act::AskNet { .. } | node::Act::Connected(_) => {}
                    }
                }
            }
            Acts::Net(acts) => {
                let Who::Net(index) = who else { return };
                for (done, act) in acts.into_iter().enumerate() {
                    if self.point(who, Boundary::Acts(done, total)) {
                        return;
                    }
                    self.net_act(index, act);
                }
            }
        }
        self.point(who, Boundary::Acts(total, total));
    }

    fn cluster_act(&mut self, who: Who, act: cluster::Act) {
        let Who::Cluster(index) = who else { return };
        match act {
            cluster::Act::SendUp(frame) => self.send(index, UP, frame.encode_to_vec()),
            cluster::Act::SendNode(node, branch, bytes) => {
                let found = self.nodes.iter().position(|host| host.id == node);
                if let Some(node) = found {
                    let link = self.link_of(match branch {
                        Branch::Engine => Who::Node(node),
                        Branch::Net => Who::Net(node),
                    });
                    self.send(link, DOWN, bytes);
                }
            }
            cluster::Act::Expel(node) => {
                if let Some(node) = self.nodes.iter().position(|host| host.id == node) {
                    self.nodes[node].expelled = true;
                    for who in [Who::Node(node), Who::Net(node)] {
                        let link = self.link_of(who);
                        self.cut(link, 500);
                    }
                }
            }
            cluster::Act::Joined(number, result) if number >= FIRST_REQUEST => {
                self.granted(number, result.map_err(|refusal| refusal.to_string()));
            }
            cluster::Act::Joined(number, result) => self.rejoined(index, number, &result),
            cluster::Act::Note(cluster::Note::Violation(what)) => self.violate("protocol", what),
            cluster::Act::Note(cluster::Note::Cloned(node)) => {
                self.violate("identity", format!("{node} was taken for a clone"));
            }
            cluster::Act::Note(note) => self.log.detail(self.t, || format!("{who:?}: {note:?}")),
            cluster::Act::Answer(..)
            | cluster::Act::ExpectStream(_)
            | cluster::Act::Connected(_)
            | cluster::Act::RelayFor(_) => {}
        }
    }

    /// Puts a message on a link, if it stands.
    pub fn send(&mut self, link: usize, direction: usize, bytes: Vec<u8>) {
        let t = self.t;
        self.log.detail(t, || {
            let frame = wire::Frame::decode(bytes.as_slice()).ok().and_then(|frame| frame.body);
            let text = format!("{frame:?}");
            format!(
                "send {link} {} {}",
                ["up", "down"][direction],
                &text[..text.len().min(240)]
            )
        });
        let Some(connection) = (if direction == UP {
            self.links[link].child
        } else {
            self.links[link].parent
        }) else {
            return;
        };
        if self.links[link].blocked[direction] {
            self.links[link].held[direction].push((connection, bytes));
            return;
        }
        let weather = self.plan.weather;
        for at in self.links[link].arrivals(direction, t, &weather, &mut self.rng) {
            self.push(at, Ev::Frame(link, connection, direction, bytes.clone()));
        }
    }

    fn arrive(&mut self, link: usize, connection: u64, direction: usize, bytes: Vec<u8>) {
        if direction == DOWN {
            // Nothing of an earlier connection arrives after the next has come up.
            if self.links[link].child != Some(connection) {
                return;
            }
        } else if self.links[link].parent.is_none() {
            return;
        }
        let to = if direction == UP {
            self.parent_of(link)
        } else {
            self.child_of(link)
        };
        self.log.line(
            self.t,
            format_args!("frame {link} {direction} {:016x}", digest("", &bytes)),
        );
        let input = match (self.child_of(link), direction) {
            (Who::Node(_), DOWN) => Input::Node(Box::new(node::Event::Message(bytes))),
            (Who::Node(index), _) => node_message(self.nodes[index].id, Branch::Engine, bytes),
            (Who::Net(_), DOWN) => Input::Net(Box::new(net::Event::Message(bytes))),
            (Who::Net(index), _) => node_message(self.nodes[index].id, Branch::Net, bytes),
            (Who::Cluster(index), direction) => {
                let Ok(frame) = wire::Frame::decode(bytes.as_slice()) else {
                    return;
                };
                if direction == DOWN {
                    Input::Cluster(Box::new(cluster::Event::UplinkMessage(frame)))
                } else {
                    Input::Root(Box::new(root::Event::Message(self.clusters[index].id, frame)))
                }
            }
            (Who::Root, _) => return,
        };
        self.give(to, input);
    }

    fn dial(&mut self, link: usize) {
        let again = self.t + self.rng.random_range(300..1_500);
        self.push(again, Ev::Dial(link));
        let child = self.child_of(link);
        let expelled = matches!(child, Who::Node(index) | Who::Net(index) if self.nodes[index].expelled);
        let valid_from = self.links[link].valid_from;
        // The net manager shows the node's certificate.
        let holder = match child {
            Who::Net(index) => Who::Node(index),
            other => other,
        };
        let is_valid = valid_from == 0 || self.papers(holder).in_force >= valid_from;
        let free = self.links[link].child.is_none() && self.links[link].is_open() && is_valid;
        if !free || !self.is_up(child) || !self.is_up(self.parent_of(link)) {
            return;
        }
        if expelled {
            // It is refused, asks why, and is told.
            if matches!(child, Who::Node(_)) {
                self.give(child, Input::Node(Box::new(node::Event::Revoked)));
            }
            return;
        }
        if let Some(old) = self.links[link].parent {
            self.happen(Ev::ParentDown(link, old));
        }
        let connection = self.links[link].connect();
        self.log.line(self.t, format_args!("link {link} is up ({connection})"));
        let event = match child {
            Who::Node(_) => Input::Node(Box::new(node::Event::LinkUp)),
            Who::Net(_) => Input::Net(Box::new(net::Event::LinkUp)),
            _ => Input::Cluster(Box::new(cluster::Event::UplinkUp)),
        };
        self.give(child, event);
    }

    /// A connection breaks; each end notices within `within` milliseconds.
    pub fn cut(&mut self, link: usize, within: u64) {
        if let Some(connection) = self.links[link].child {
            let at = self.t + self.rng.random_range(0..=within);
            self.push(at, Ev::ChildDown(link, connection));
        }
        if let Some(connection) = self.links[link].parent {
            let at = self.t + self.rng.random_range(0..=within);
            self.push(at, Ev::ParentDown(link, connection));
        }
    }

    /// An operation of a runtime ends at `at`.
    pub fn op(&mut self, at: u64, index: usize, op: Op) {
        self.push(at, Ev::Done(index, op));
    }
}

impl<T> crate::daemon::Daemon<T> {
    /// When everything before these writes is durable, and when they are; the next tick as it is and as it is due.
    fn take(
        &mut self,
        t: u64,
        sync: u64,
        writes: Vec<Write>,
        due: Option<roble_core::time::Boottime>,
    ) -> ([u64; 2], u64, Option<u64>) {
        self.disk.sync(t);
        let before = self.durable_at.max(t);
        self.durable_at = self.durable_at.max(t + sync);
        self.disk.write(self.durable_at, writes);
        (
            [before, self.durable_at],
            self.next_tick,
            due.map(|due| self.instant(due)),
        )
    }
}

type Given = (Vec<Write>, Acts, Option<roble_core::time::Boottime>);

fn split<A>(output: Output<A>, due: Option<roble_core::time::Boottime>, wrap: fn(Vec<A>) -> Acts) -> Given {
    (output.writes, wrap(output.acts), due)
}

fn acts_len(acts: &Acts) -> usize {
    match acts {
        Acts::Root(acts) => acts.len(),
        Acts::Cluster(acts) => acts.len(),
        Acts::Node(acts) => acts.len(),
        Acts::Net(acts) => acts.len(),
    }
}

fn node_down(node: NodeId, branch: Branch) -> Input {
    Input::Cluster(Box::new(cluster::Event::NodeDown(node, branch)))
}

fn node_message(node: NodeId, branch: Branch, bytes: Vec<u8>) -> Input {
    Input::Cluster(Box::new(cluster::Event::NodeMessage(node, branch, bytes)))
}

fn summary(writes: &[Write]) -> (usize, u64) {
    let sum = writes.iter().fold(0_u64, |sum, write| {
        sum.rotate_left(7) ^ digest(&write.id, write.value.as_deref().unwrap_or(b"-"))
    });
    (writes.len(), sum)
}
