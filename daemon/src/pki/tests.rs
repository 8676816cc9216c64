use std::os::unix::fs::PermissionsExt as _;

use rustls_pki_types::{ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::*;

const NOW: u64 = 1_800_000_000_000;
const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

fn id(digit: &str) -> String {
    digit.repeat(24)
}

fn key() -> PrivateKey {
    PrivateKey::generate().unwrap()
}

fn request(key: &PrivateKey) -> VerifiedRequest {
    VerifiedRequest::parse(&key.request().unwrap()).unwrap()
}

fn root() -> Authority {
    Authority::create_root(NOW, Lifetimes::default()).unwrap()
}

fn cluster_of(root: &Authority, cluster: &str) -> Authority {
    let key = key();
    let issued = root.issue_cluster_authority(cluster, &request(&key), NOW).unwrap();
    Authority::new(key, issued.chain, Lifetimes::default()).unwrap()
}

/// What webpki, the verifier below rustls, says of a chain.
fn verify(chain: &[CertificateDer<'_>], root: &Authority, at: u64, usage: KeyUsage) -> Result<(), webpki::Error> {
    let anchors = [anchor_from_trusted_cert(root.root()).unwrap()];
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_millis(at));
    let leaf = EndEntityCert::try_from(&chain[0]).unwrap();
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &chain[1..],
        at,
        usage,
        None,
        None,
    )
    .map(drop)
}

/// A certificate as a hostile authority would make it: any names, no rules of ours.
fn forge(authority: &Authority, names: Vec<rcgen::SanType>, ca: bool) -> (PrivateKey, Vec<CertificateDer<'static>>) {
    let key = key();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = names;
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2040, 1, 1);
    if ca {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    let chain = authority.sign_anything(&params, &key);
    (key, chain)
}

fn dns(name: &str) -> rcgen::SanType {
    rcgen::SanType::DnsName(name.try_into().unwrap())
}

#[test]
fn names_and_identities_match_both_ways() {
    let node = Identity::node(&id("c"), &id("1")).unwrap();
    for identity in [Identity::Root, Identity::cluster(&id("c")).unwrap(), node] {
        assert_eq!(Identity::from_dns_name(&identity.dns_name()), Some(identity));
    }
    let cluster = format!("c-{}.roble.internal", id("c"));
    for name in [
        "",
        "roble.internal",
        ".roble.internal",
        "root.roble.internal.",
        "Root.roble.internal",
        "*.roble.internal",
        "rootroble.internal",
        "root.roble.internal.example.org",
        "c-short.roble.internal",
        &format!("c-{}.roble.internal", id("C")),
        &format!("*.{cluster}"),
        &format!("n-{}.n-{}.{cluster}", id("1"), id("2")),
        &format!("n-{}.roble.internal", id("1")),
    ] {
        assert_eq!(Identity::from_dns_name(name), None, "{name}");
    }
    assert!(check_id(&id("g")).is_err() && check_id("").is_err() && check_id(&id("A")).is_err());
}

#[test]
fn every_chain_verifies_and_says_who_it_is() {
    let root = root();
    let cluster = cluster_of(&root, &id("c"));
    let extra = ["root.example.org".into(), "192.0.2.7".into()];
    let keys = [key(), key(), key(), key()];
    let issued = [
        (
            root.issue_root(&extra, &request(&keys[0]), NOW).unwrap(),
            Identity::Root,
            90,
        ),
        (
            root.issue_cluster(&id("c"), &request(&keys[1]), NOW).unwrap(),
            Identity::cluster(&id("c")).unwrap(),
            30,
        ),
        (
            cluster.issue_cluster(&id("c"), &request(&keys[2]), NOW).unwrap(),
            Identity::cluster(&id("c")).unwrap(),
            30,
        ),
        (
            cluster.issue_node(&id("1"), &request(&keys[3]), NOW).unwrap(),
            Identity::node(&id("c"), &id("1")).unwrap(),
            7,
        ),
    ];
    for ((issued, identity, days), key) in issued.into_iter().zip(keys) {
        verify(&issued.chain, &root, NOW, KeyUsage::server_auth()).unwrap();
        assert_eq!(issued.chain.last(), Some(root.root()));
        let (from, until) = validity(&issued.chain[0]).unwrap();
        assert_eq!((from, until), (NOW - 300_000, NOW + days * DAY));
        let credential = Credential::new(key, issued.chain.clone()).unwrap();
        let expected = Peer {
            identity,
            serial: issued.serial,
            key: credential.key().pin(),
            not_after: until,
        };
        assert_eq!(credential.peer(), &expected);
        assert_eq!(credential.root_pin().unwrap(), root.pin());
        assert_eq!(credential.renew_at(), from + (until - from) / 3);
        assert!(
            verify(&issued.chain, &root, until + 1000, KeyUsage::server_auth()).is_err(),
            "expired"
        );
        assert!(
            verify(&issued.chain, &root, from - 1000, KeyUsage::server_auth()).is_err(),
            "not yet valid"
        );
    }
}

#[test]
fn root_is_reached_by_its_advertised_names_too() {
    let root = root();
    let extra = ["root.example.org".into(), "192.0.2.7".into(), "2001:db8::7".into()];
    let issued = root.issue_root(&extra, &request(&key()), NOW).unwrap();
    let leaf = EndEntityCert::try_from(&issued.chain[0]).unwrap();
    for name in ["root.roble.internal", "root.example.org", "192.0.2.7", "2001:db8::7"] {
        leaf.verify_is_valid_for_subject_name(&ServerName::try_from(name).unwrap())
            .unwrap();
    }
    for bad in ["c-x.roble.internal", "ROBLE.internal", "no name", ""] {
        assert!(
            root.issue_root(&[ExtraName::Dns(bad.into())], &request(&key()), NOW)
                .is_err(),
            "{bad}"
        );
    }
}

#[test]
fn an_authority_issues_only_its_own() {
    let root = root();
    let cluster = cluster_of(&root, &id("c"));
    let request = request(&key());
    assert!(matches!(
        cluster.issue_cluster(&id("d"), &request, NOW),
        Err(PkiError::NotMine { .. })
    ));
    assert!(matches!(
        cluster.issue_root(&[], &request, NOW),
        Err(PkiError::NotMine { .. })
    ));
    assert!(matches!(
        cluster.issue_cluster_authority(&id("c"), &request, NOW),
        Err(PkiError::NotMine { .. })
    ));
    assert!(matches!(
        root.issue_node(&id("1"), &request, NOW),
        Err(PkiError::Mismatch { .. })
    ));
    assert!(matches!(
        root.issue_cluster("../../x", &request, NOW),
        Err(PkiError::BadId { .. })
    ));
}

#[test]
fn a_hostile_cluster_authority_cannot_leave_its_names() {
    let root = root();
    let cluster = cluster_of(&root, &id("c"));
    let own = format!("n-{}.c-{}.roble.internal", id("1"), id("c"));
    verify(
        &forge(&cluster, vec![dns(&own)], false).1,
        &root,
        NOW,
        KeyUsage::server_auth(),
    )
    .unwrap();
    let foreign = [
        dns("root.roble.internal"),
        dns(&format!("c-{}.roble.internal", id("d"))),
        dns(&format!("n-{}.c-{}.roble.internal", id("1"), id("d"))),
        dns(&format!("x-c-{}.roble.internal", id("c"))),
        dns("*.roble.internal"),
        dns("example.org"),
        rcgen::SanType::IpAddress("192.0.2.7".parse().unwrap()),
        rcgen::SanType::IpAddress("2001:db8::7".parse().unwrap()),
    ];
    for name in foreign {
        for names in [vec![name.clone()], vec![dns(&own), name.clone()]] {
            let (_, chain) = forge(&cluster, names, false);
            let result = verify(&chain, &root, NOW, KeyUsage::server_auth());
            assert_eq!(result, Err(webpki::Error::NameConstraintViolation), "{name:?}");
        }
    }
}

#[test]
fn a_hostile_cluster_authority_cannot_make_authorities() {
    let root = root();
    let cluster = cluster_of(&root, &id("c"));
    let (key, chain) = forge(&cluster, vec![], true);
    let below = Authority {
        owner: Identity::Root,
        key,
        chain,
        not_after: u64::MAX,
        lifetimes: Lifetimes::default(),
    };
    let own = format!("n-{}.c-{}.roble.internal", id("1"), id("c"));
    let (_, chain) = forge(&below, vec![dns(&own)], false);
    assert!(verify(&chain, &root, NOW, KeyUsage::server_auth()).is_err());
}

#[test]
fn certificate_with_several_identities_is_none() {
    let root = root();
    let names = |names: &[&str]| forge(&root, names.iter().map(|name| dns(name)).collect(), false).1;
    let cluster = format!("c-{}.roble.internal", id("c"));
    for chain in [
        names(&[]),
        names(&["example.org"]),
        names(&["root.roble.internal", &cluster]),
    ] {
        assert!(matches!(
            Peer::from_verified(&chain[0]),
            Err(PkiError::NoIdentity { .. })
        ));
    }
    assert_eq!(
        Peer::from_verified(&names(&["example.org", &cluster])[0])
            .unwrap()
            .identity
            .dns_name(),
        cluster
    );
}

#[test]
fn request_proves_possession_and_p256() {
    let good = key().request().unwrap();
    assert!(VerifiedRequest::parse(&good).is_ok());
    for cut in [0, 1, good.len() / 2, good.len() - 1] {
        assert!(VerifiedRequest::parse(&good[..cut]).is_err());
    }
    // Damage is noticed, or lies outside of what is signed (the encoding of the algorithm) and changes nothing.
    let pin = VerifiedRequest::parse(&good).unwrap().pin();
    for position in 0..good.len() {
        let mut damaged = good.clone();
        damaged[position] ^= 1;
        assert!(
            VerifiedRequest::parse(&damaged).map_or(true, |read| read.pin() == pin),
            "byte {position}"
        );
    }
    assert!(VerifiedRequest::parse(&[good.clone(), vec![0]].concat()).is_err());
    assert!(VerifiedRequest::parse(&vec![0x30; 10_000]).is_err());
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let other = rcgen::CertificateParams::default().serialize_request(&other).unwrap();
    assert!(VerifiedRequest::parse(other.der()).is_err());
}

#[test]
fn names_in_a_request_are_ignored() {
    let key = key();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![dns("root.roble.internal")];
    let request = VerifiedRequest::parse(params.serialize_request(key.pair()).unwrap().der()).unwrap();
    let cluster = cluster_of(&root(), &id("c"));
    let issued = cluster.issue_node(&id("1"), &request, NOW).unwrap();
    let peer = Peer::from_verified(&issued.chain[0]).unwrap();
    assert_eq!(peer.identity, Identity::node(&id("c"), &id("1")).unwrap());
}

#[test]
fn a_certificate_never_outlives_its_authority() {
    let root = root();
    let cluster = cluster_of(&root, &id("c"));
    let late = cluster.not_after() - DAY;
    assert_eq!(
        cluster.issue_node(&id("1"), &request(&key()), late).unwrap().not_after,
        cluster.not_after()
    );
}

#[test]
fn files_are_private_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authority.pem");
    let made = Authority::load_or_create_root(&path, NOW, Lifetimes::default()).unwrap();
    let again = Authority::load_or_create_root(&path, NOW, Lifetimes::default()).unwrap();
    assert_eq!(made.pin(), again.pin());
    assert_eq!(made.chain(), again.chain());
    let cluster = cluster_of(&made, &id("c"));
    let cluster_path = folder.path().join("cluster.pem");
    cluster.save(&cluster_path).unwrap();
    let read = Authority::load(&cluster_path, Lifetimes::default()).unwrap().unwrap();
    assert_eq!(read.owner(), &Identity::cluster(&id("c")).unwrap());
    assert_eq!(read.root_pin().unwrap(), made.pin());

    let key_path = folder.path().join("node.key");
    let key = PrivateKey::load_or_generate(&key_path).unwrap();
    assert_eq!(key.pin(), PrivateKey::load_or_generate(&key_path).unwrap().pin());
    assert!(!format!("{key:?}").contains("BEGIN"));
    let chain = read.issue_node(&id("1"), &request(&key), NOW).unwrap().chain;
    let credential = Credential::new(key, chain.clone()).unwrap();
    let node_path = folder.path().join("node.pem");
    assert!(Credential::load(&node_path).unwrap().is_none());
    credential.save(&node_path).unwrap();
    assert_eq!(Credential::load(&node_path).unwrap().unwrap().peer(), credential.peer());
    for file in [&path, &cluster_path, &key_path, &node_path] {
        assert_eq!(
            std::fs::metadata(file).unwrap().permissions().mode() & 0o777,
            0o600,
            "{}",
            file.display()
        );
    }

    assert!(matches!(
        Credential::new(PrivateKey::generate().unwrap(), chain),
        Err(PkiError::Mismatch { .. })
    ));
    std::fs::write(&path, "not a key").unwrap();
    assert!(
        Authority::load_or_create_root(&path, NOW, Lifetimes::default()).is_err(),
        "damage is never papered over"
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"not a key");
}

#[test]
fn pins_have_one_spelling() {
    let pin = key().pin();
    assert_eq!(pin.to_string().parse::<Pin>().unwrap(), pin);
    for bad in ["", "ab", &pin.to_string().to_uppercase(), &format!("{pin}00")] {
        assert!(bad.parse::<Pin>().is_err(), "{bad}");
    }
}
