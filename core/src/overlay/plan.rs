//! The tree's ranges. The defaults are Oakestra's, so that descriptors with addresses in them keep working.

use super::block::Block;
use super::row::Policy;
use crate::ids::{RawId, ServiceId};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Number of instances of a service that have IPv6 addresses of their own: 11 bits.
const INSTANCES: u32 = 1 << 11;

/// Which addresses the overlay uses. One for the whole tree; set at the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// First and last IPv4 address that blocks of endpoints are cut from.
    pub endpoints: (Ipv4Addr, Ipv4Addr),
    /// The upper 96 bits of IPv6 endpoint addresses; the lower 32 are the IPv4 one.
    pub endpoints_v6: Ipv6Addr,
    /// IPv4 addresses of services.
    pub services: Block,
    /// The upper 16 bits of IPv6 service addresses.
    pub services_v6: u16,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            endpoints: (Ipv4Addr::new(10, 18, 0, 0), Ipv4Addr::new(10, 29, 255, 255)),
            endpoints_v6: Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0),
            services: Block::new(Ipv4Addr::new(10, 30, 0, 0), 16),
            services_v6: 0xfdff,
        }
    }
}

impl Plan {
    /// The IPv6 endpoint address beside an IPv4 one.
    pub fn endpoint_v6(&self, v4: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.endpoints_v6) & !0xffff_ffff | u128::from(u32::from(v4)))
    }

    /// The IPv6 address of a service under a policy; it follows from the id. `None` for instances beyond the 2,048th.
    ///
    /// 16 bits of the range, 16 for the policy, 96 of the id: instances in `0000::/21`, closest `1000::/21`, round robin
    /// `2000::/21` (as Oakestra has them), least used `3000::/21`.
    pub fn service_v6(&self, policy: Policy, service: ServiceId) -> Option<Ipv6Addr> {
        let group = match policy {
            Policy::Instance(number) if number < INSTANCES => number as u16,
            Policy::Instance(_) => return None,
            other => first_v6(other),
        };
        let mut bytes = [0_u8; 16];
        bytes[..2].copy_from_slice(&self.services_v6.to_be_bytes());
        bytes[2..4].copy_from_slice(&group.to_be_bytes());
        bytes[4..].copy_from_slice(service.0.as_bytes());
        Some(Ipv6Addr::from(bytes))
    }

    /// The service and policy that an IPv6 address follows from: [`service_v6`](Self::service_v6) the other way round.
    pub fn service_of_v6(&self, address: Ipv6Addr) -> Option<(ServiceId, Policy)> {
        let bytes = address.octets();
        let mut id = [0; 12];
        id.copy_from_slice(&bytes[4..]);
        let service = ServiceId(RawId::from_bytes(id));
        let number = u32::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        [
            Policy::RoundRobin,
            Policy::Closest,
            Policy::LeastUsed,
            Policy::Instance(number),
        ]
        .into_iter()
        .find(|policy| self.service_v6(*policy, service) == Some(address))
        .map(|policy| (service, policy))
    }

    /// The range of IPv6 addresses under a policy, for people.
    pub fn range_v6(&self, policy: Policy) -> String {
        format!("{:x}:{:x}::/21", self.services_v6, first_v6(policy))
    }

    /// Whether a service may ask for this IPv6 address under a policy.
    pub fn may_have_v6(&self, policy: Policy, address: Ipv6Addr) -> bool {
        let [range, group, ..] = address.segments();
        range == self.services_v6 && group & 0xf800 == first_v6(policy)
    }

    /// Whether an address is one of services.
    pub fn is_service(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.services.spans(v4),
            IpAddr::V6(v6) => v6.segments()[0] == self.services_v6,
        }
    }

    /// Whether an address is one of endpoints.
    pub fn is_endpoint(&self, address: IpAddr) -> bool {
        let is_v4 = |v4: Ipv4Addr| (self.endpoints.0..=self.endpoints.1).contains(&v4);
        match address {
            IpAddr::V4(v4) => is_v4(v4),
            IpAddr::V6(v6) => {
                let v4 = Ipv4Addr::from(u128::from(v6) as u32);
                is_v4(v4) && self.endpoint_v6(v4) == v6
            }
        }
    }
}

/// Where the /21 of a policy begins: its second group.
const fn first_v6(policy: Policy) -> u16 {
    match policy {
        Policy::Instance(_) => 0,
        Policy::Closest => 0x1000,
        Policy::RoundRobin => 0x2000,
        Policy::LeastUsed => 0x3000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_from_ids_and_lie_in_their_ranges() {
        let plan = Plan::default();
        let service: ServiceId = "0123456789abcdef01234567".parse().unwrap();
        let rr = plan.service_v6(Policy::RoundRobin, service).unwrap();
        assert_eq!(rr.to_string(), "fdff:2000:123:4567:89ab:cdef:123:4567");
        let third = plan.service_v6(Policy::Instance(3), service).unwrap();
        assert_eq!(third.to_string(), "fdff:3:123:4567:89ab:cdef:123:4567");
        for policy in [
            Policy::RoundRobin,
            Policy::Closest,
            Policy::LeastUsed,
            Policy::Instance(2_047),
        ] {
            let address = plan.service_v6(policy, service).unwrap();
            assert_eq!(plan.service_of_v6(address), Some((service, policy)));
        }
        assert_eq!(plan.service_of_v6("fdfe:2000::1".parse().unwrap()), None);
        assert_eq!(plan.service_v6(Policy::Instance(2_048), service), None);
        assert!(plan.is_service(rr.into()) && plan.is_service(third.into()));
        let endpoint = Ipv4Addr::new(10, 18, 0, 2);
        assert_eq!(plan.endpoint_v6(endpoint).to_string(), "fc00::a12:2");
        assert!(plan.is_endpoint(endpoint.into()) && plan.is_endpoint(plan.endpoint_v6(endpoint).into()));
        for other in ["10.17.255.255", "10.30.0.1", "fc01::a12:2", "192.168.1.1"] {
            assert!(!plan.is_endpoint(other.parse().unwrap()), "{other}");
        }
        assert!(plan.is_service("10.30.55.55".parse().unwrap()));
        assert!(!plan.is_service("10.31.0.0".parse().unwrap()));
        assert_eq!(plan.range_v6(Policy::RoundRobin), "fdff:2000::/21");
        assert!(plan.may_have_v6(Policy::RoundRobin, "fdff:27ff::1".parse().unwrap()));
        assert!(!plan.may_have_v6(Policy::RoundRobin, "fdff:2800::1".parse().unwrap()));
    }
}
