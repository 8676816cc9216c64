//! What breaks, when, and how it heals.

use crate::drive::Input;
use crate::net::{DOWN, UP};
use crate::world::{Ev, Who, World};
use rand::Rng;
use roble_core::registry::Forgotten;

/// Something that breaks, or heals.
#[derive(Debug, Clone)]
pub enum Fault {
    /// A process dies and is started again after so many milliseconds.
    Crash(Who, u64),
    /// A node loses power for so many milliseconds.
    PowerCut(usize, u64),
    /// Nothing gets through on these links in these directions (up, down) for so many milliseconds.
    Partition(Vec<usize>, [bool; 2], u64),
    /// A direction opens again.
    Heal(Vec<usize>, [bool; 2]),
    /// A connection breaks and may be made again at once.
    Cut(usize),
    /// Power is back.
    PowerOn(usize),
    /// A wall clock jumps.
    Jump(Who, i64),
    /// A cluster's store is lost.
    LostStore(usize),
    /// The store of a node engine is lost; what it runs goes on.
    LostNodeStore(usize),
    /// The files of a net manager are lost: its rows, its attachments. What runs goes on.
    LostNetStore(usize, bool, bool),
    /// A node asks its cluster, which does not know it, to take it up again.
    Rejoin(usize),
    /// All faults end.
    Calm,
}

impl World {
    /// Plans the faults of the run.
    pub fn plan_faults(&mut self) {
        let calm = self.plan.calm_at;
        let count = self.rng.random_range(4..=14);
        for _ in 0..count {
            let at = self.rng.random_range(12_000..calm - 5_000);
            let fault = if self.plan.gentle {
                self.gentle_fault()
            } else {
                self.any_fault()
            };
            self.push(at, Ev::Fault(fault));
        }
        self.push(calm, Ev::Fault(Fault::Calm));
    }

    fn gentle_fault(&mut self) -> Fault {
        let cluster = self.rng.random_range(0..self.clusters.len());
        let node = self.rng.random_range(0..self.nodes.len());
        match self.rng.random_range(0..10) {
            8 => Fault::Crash(Who::Net(node), self.rng.random_range(100..20_000)),
            9 => self.net_fault(node),
            7 => Fault::LostStore(cluster),
            0 => Fault::Crash(Who::Root, self.rng.random_range(100..30_000)),
            1 => Fault::Crash(Who::Cluster(cluster), self.rng.random_range(100..20_000)),
            2 => Fault::Crash(Who::Node(node), self.rng.random_range(100..1_500)),
            3 => Fault::Partition(vec![cluster], [true, true], self.rng.random_range(100..60_000)),
            4 if self.plan.seed % 7 == 3 => Fault::LostNodeStore(node),
            4 => Fault::Cut(self.rng.random_range(0..self.links.len())),
            5 => Fault::Jump(self.any_daemon(), self.rng.random_range(-100_000_000..100_000_000)),
            _ => Fault::Partition(
                vec![cluster],
                [self.rng.random(), true],
                self.rng.random_range(100..60_000),
            ),
        }
    }

    fn net_fault(&mut self, node: usize) -> Fault {
        if self.plan.seed % 3 == 1 {
            let rows = self.rng.random();
            Fault::LostNetStore(node, rows, !rows || self.rng.random())
        } else {
            Fault::Crash(Who::Net(node), self.rng.random_range(100..3_000))
        }
    }

    fn any_daemon(&mut self) -> Who {
        let all = 1 + self.clusters.len() + self.nodes.len();
        match self.rng.random_range(0..all) {
            0 => Who::Root,
            n if n <= self.clusters.len() => Who::Cluster(n - 1),
            n => Who::Node(n - 1 - self.clusters.len()),
        }
    }

    fn any_fault(&mut self) -> Fault {
        let node = self.rng.random_range(0..self.nodes.len());
        let link = self.rng.random_range(0..self.links.len());
        match self.rng.random_range(0..16) {
            14 => Fault::Crash(Who::Net(node), self.rng.random_range(100..20_000)),
            15 => self.net_fault(node),
            0 | 1 => {
                let who = self.any_daemon();
                let longest = if matches!(who, Who::Node(_)) { 8_000 } else { 50_000 };
                Fault::Crash(who, self.rng.random_range(100..longest))
            }
            2 | 3 => Fault::PowerCut(node, self.rng.random_range(500..70_000)),
            4..=6 => Fault::Partition(vec![link], [true, true], self.rng.random_range(500..80_000)),
            7 | 8 => {
                let up = self.rng.random_bool(0.5);
                Fault::Partition(vec![link], [up, !up], self.rng.random_range(500..60_000))
            }
            9 => Fault::Cut(link),
            10 => Fault::Jump(self.any_daemon(), self.rng.random_range(-100_000_000..100_000_000)),
            11 => {
                // A switch: all nodes of a cluster at once.
                let cluster = self.rng.random_range(0..self.clusters.len());
                let of = |node: &usize| self.nodes[*node].cluster == cluster;
                let nodes = (0..self.nodes.len()).filter(of);
                let links = nodes.flat_map(|node| [Who::Node(node), Who::Net(node)].map(|who| self.link_of(who)));
                let links = links.collect();
                Fault::Partition(links, [true, true], self.rng.random_range(500..80_000))
            }
            12 if self.plan.seed.is_multiple_of(5) => Fault::LostStore(self.rng.random_range(0..self.clusters.len())),
            13 if self.plan.seed % 7 == 3 => Fault::LostNodeStore(node),
            _ => Fault::Crash(Who::Node(node), self.rng.random_range(100..8_000)),
        }
    }

    /// Lets a fault happen.
    pub fn fault(&mut self, fault: Fault) {
        self.log.line(self.t, format_args!("fault {fault:?}"));
        match fault {
            Fault::Crash(who, down_ms) => {
                let may = match who {
                    Who::Node(index) => self.may_crash(index),
                    Who::Cluster(index) => self.may_crash_cluster(index),
                    _ => true,
                };
                if !may {
                    return;
                }
                self.crash(who);
                self.push(self.t + down_ms, Ev::Start(who));
            }
            Fault::PowerCut(index, down_ms) => {
                if !self.nodes[index].powered {
                    return;
                }
                self.crash(Who::Node(index));
                self.crash(Who::Net(index));
                let host = &mut self.nodes[index];
                host.power_off();
                host.powered = false;
                self.push(self.t + down_ms, Ev::Fault(Fault::PowerOn(index)));
            }
            Fault::PowerOn(index) => {
                let t = self.t;
                let host = &mut self.nodes[index];
                if !host.powered {
                    host.powered = true;
                    host.daemon.reboot(t);
                    host.net.daemon.reboot(t);
                    for who in [Who::Node(index), Who::Net(index)] {
                        let at = t + self.rng.random_range(500..8_000);
                        self.push(at, Ev::Start(who));
                    }
                }
            }
            Fault::Partition(links, directions, for_ms) => {
                for link in &links {
                    for direction in [UP, DOWN] {
                        self.links[*link].blocked[direction] |= directions[direction];
                    }
                    self.ledger.cut_at.get_or_insert(self.t);
                    // Keep-alives find out, unless it heals before.
                    if for_ms > 4_000 {
                        let within = for_ms.min(20_000);
                        self.cut(*link, within);
                    }
                }
                self.push(self.t + for_ms, Ev::Fault(Fault::Heal(links, directions)));
            }
            Fault::Heal(links, directions) => {
                for link in links {
                    for direction in [UP, DOWN] {
                        if directions[direction] {
                            self.unblock(link, direction);
                        }
                    }
                }
            }
            Fault::Cut(link) => self.cut(link, 3_000),
            Fault::Jump(who, by_ms) => match who {
                Who::Root => self.root.jump(by_ms),
                Who::Cluster(index) => self.clusters[index].daemon.jump(by_ms),
                Who::Node(index) | Who::Net(index) => {
                    self.nodes[index].daemon.jump(by_ms);
                    self.nodes[index].net.daemon.jump(by_ms);
                }
            },
            Fault::LostStore(index) => self.lose_store(index),
            Fault::LostNodeStore(index) => self.lose_node_store(index),
            Fault::LostNetStore(index, rows, attachments) => self.lose_net_store(index, rows, attachments),
            Fault::Rejoin(node) => self.rejoin(node),
            Fault::Calm => self.calm(),
        }
    }

    /// A process dies.
    pub fn crash(&mut self, who: Who) {
        if !self.is_up(who) {
            return;
        }
        let t = self.t;
        match who {
            Who::Root => {
                self.root.crash(t);
                self.users.lost_calls();
            }
            Who::Cluster(index) => self.clusters[index].daemon.crash(t),
            Who::Node(index) => {
                let host = &mut self.nodes[index];
                host.daemon.crash(t);
                host.interrupt(&mut self.rng);
            }
            Who::Net(index) => self.nodes[index].net.crash(t),
        }
        for link in 0..self.links.len() {
            if self.child_of(link) == who {
                self.links[link].child = None;
                // The kernel closes the connections of a process that died.
                self.cut(link, 3_000);
            } else if self.parent_of(link) == who {
                self.links[link].parent = None;
                // The kernel closes the connections of a process that died.
                self.cut(link, 3_000);
            }
        }
    }

    fn unblock(&mut self, link: usize, direction: usize) {
        if self.links[link].blocked[direction] {
            self.ledger.healed_at = self.t;
        }
        self.links[link].blocked[direction] = false;
        if !self.links.iter().any(|link| link.blocked.contains(&true)) {
            self.ledger.cut_at = None;
        }
        let held = std::mem::take(&mut self.links[link].held[direction]);
        for (index, (connection, bytes)) in held.into_iter().enumerate() {
            // What was retransmitted arrives in order if the connection still stands.
            self.push(self.t + 1 + index as u64, Ev::Frame(link, connection, direction, bytes));
        }
    }

    /// The limit of at-most-one: an engine must be up again within its fence, and stay up for a while.
    fn may_crash(&mut self, node: usize) -> bool {
        let is_long_ago = self.t >= self.nodes[node].crashed_at + 25_000;
        if is_long_ago {
            self.nodes[node].crashed_at = self.t;
        }
        is_long_ago
    }

    /// Where nothing may restart, a cluster must not be away for longer than at-most-one copies may go on without it.
    fn may_crash_cluster(&mut self, index: usize) -> bool {
        let cluster = &mut self.clusters[index];
        let may = !self.plan.gentle || self.t >= cluster.crashed_at + 40_000;
        if may {
            cluster.crashed_at = self.t;
        }
        may
    }

    fn lose_node_store(&mut self, index: usize) {
        if !self.may_crash(index) || !self.is_up(Who::Node(index)) {
            return;
        }
        self.crash(Who::Node(index));
        self.lost_stores += 1;
        let daemon = &mut self.nodes[index].daemon;
        daemon.disk.wipe();
        daemon.complete = false;
        let back = self.t + self.rng.random_range(100..1_500);
        self.push(back, Ev::Start(Who::Node(index)));
    }

    fn lose_store(&mut self, index: usize) {
        self.crash(Who::Cluster(index));
        self.lost_stores += 1;
        self.clusters[index].has_lost_store = true;
        let daemon = &mut self.clusters[index].daemon;
        daemon.disk.wipe();
        daemon.complete = false;
        let back = self.t + self.rng.random_range(1_000..10_000);
        self.push(back, Ev::Start(Who::Cluster(index)));
    }

    /// A node that its cluster forgot shows its certificate at the cluster's door. Who was put out does not get in there.
    fn rejoin(&mut self, node: usize) {
        let host = &self.nodes[node];
        let cluster = Who::Cluster(host.cluster);
        let link = self.link_of(Who::Node(node));
        if host.expelled || !self.links[link].is_open() || !self.is_up(cluster) {
            return;
        }
        let event = roble_cluster::tier::Event::Renew {
            asker: 77,
            key_sha256: host.key.clone(),
            forgotten: Some(Forgotten {
                id: host.id.into(),
                name: host.name.clone(),
                needs_approval: false,
            }),
        };
        self.give(cluster, Input::Cluster(Box::new(event)));
    }

    fn calm(&mut self) {
        for link in 0..self.links.len() {
            self.unblock(link, UP);
            self.unblock(link, DOWN);
        }
        self.plan.weather.loss = 0;
        self.plan.weather.late = 0;
        self.push(self.t + 100, Ev::Start(Who::Root));
        for index in 0..self.clusters.len() {
            self.push(self.t + 100, Ev::Start(Who::Cluster(index)));
        }
        for index in 0..self.nodes.len() {
            self.push(self.t + 100, Ev::Fault(Fault::PowerOn(index)));
            self.push(self.t + 100, Ev::Start(Who::Node(index)));
            self.push(self.t + 100, Ev::Start(Who::Net(index)));
        }
    }
}
