//! What holds for every descriptor: nothing panics, all answers are complete, and what is printed reads back.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use roble_core::descriptor::{
    Addresses, AllowRule, ApplicationDescriptor, Code, Descriptor, Form, Format, MAX_BYTES, MAX_ENTRIES, MAX_LONG_TEXT,
    MAX_TEXT, ServiceDescriptor, fuzz_descriptor, parse, to_native_yaml,
};
use roble_core::ids::{ApplicationId, OrganizationId, RawId};
use roble_core::labels::Selector;
use roble_core::ports::{PortMapping, PortRange, Protocol};
use roble_core::resources::Resources;
use roble_core::spec::{Constraints, RestartPolicy, SecurityProfile, WhenCutOff};
use serde_json::{Value, json};

/// Texts that YAML could take for something else, mixed with any text.
fn text() -> impl Strategy<Value = String> {
    let hard = select(vec![
        "", "no", "off", "true", "null", "~", "1", "1.10", "0x1f", "1e3", "- x", "a: b", "a:", "# c", "x # y", "---",
        "...", "<<", "*a", "&a", "!t", "|", ">", "%x", "@x", "`x`", " lead", "trail ", "\"", "'", "\\", "\n", "a\r\nb",
        "\t", "\u{7f}", "\u{85}", "\u{2028}", "\u{feff}", "\u{fffe}", "🌳", "[", "{}", "?", ":", "=", ",", ".inf",
    ]);
    prop_oneof![2 => hard.prop_map(str::to_owned), 1 => "[^\0]{0,20}", 1 => "[a-zA-Z0-9 :#-]{0,200}"]
}

fn label() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("<<".to_owned()),
        Just("null".to_owned()),
        Just("1".to_owned()),
        "[!-~]{1,20}",
        "[ä-ü]{1,9}"
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9]",
        "[a-z0-9][a-z0-9-]{0,38}[a-z0-9]",
        "[a-z0-9]{1,9}\\.[a-z][a-z0-9]{0,9}"
    ]
}

fn constraints() -> impl Strategy<Value = Constraints> {
    let place = || option::of(text().prop_filter("a name", |text| (1..=253).contains(&text.len())));
    let selector = || btree_map(label(), label(), 0..3).prop_map(Selector);
    let architectures = select(vec![vec![], vec!["arm64"], vec!["amd64", "386"]]);
    (place(), place(), selector(), selector(), architectures).prop_map(
        |(cluster, node, cluster_selector, node_selector, architectures)| Constraints {
            cluster,
            node,
            cluster_selector,
            node_selector,
            architectures: architectures.into_iter().map(str::to_owned).collect(),
        },
    )
}

fn ports() -> impl Strategy<Value = Vec<PortMapping>> {
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp]);
    btree_map((protocol, 1_u16..), 1_u16.., 0..4).prop_map(|ports| {
        let mapping = |((protocol, host), container)| PortMapping {
            host,
            container,
            protocol,
        };
        ports.into_iter().map(mapping).collect()
    })
}

fn service() -> impl Strategy<Value = ServiceDescriptor> {
    let image = select(vec![
        "docker.io/library/a:latest",
        "registry.local:5000/b/c:1.0",
        "ghcr.io/x/y:V_1",
    ]);
    let restart = select(vec![
        RestartPolicy::Always,
        RestartPolicy::OnFailure,
        RestartPolicy::Never,
    ]);
    let pair = ("[A-Za-z_<~][!-<>-~]{0,9}", text());
    let what = (
        name(),
        0_u32..=1000,
        image,
        vec(text(), 0..4),
        vec(text(), 0..4),
        vec(pair, 0..4),
    );
    let user = option::of(select(vec!["1000", "nobody", "1000:1000", "www-data:www-data"]));
    let how = (
        option::of(text()),
        user,
        10_u64..=1_024_000,
        (4_u64 << 20)..=(16 << 40),
        ports(),
        restart,
    );
    let flags = (
        any::<bool>(),
        0_u64..=3_600_000,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    (what, how, flags, constraints(), rules()).prop_map(|(what, how, flags, constraints, rules)| ServiceDescriptor {
        name: what.0,
        replicas: what.1,
        virtualization: "container".to_owned(),
        image: what.2.to_owned(),
        command: what.3,
        args: what.4,
        environment: what.5,
        working_dir: how.0.map(|dir| format!("/{dir}")),
        user: how.1.map(str::to_owned),
        resources: Resources {
            cpu_millis: how.2,
            memory_bytes: how.3,
        },
        ports: how.4,
        restart: how.5,
        one_shot: flags.0,
        stop_grace_ms: flags.1,
        when_cut_off: if flags.2 {
            WhenCutOff::Stop
        } else {
            WhenCutOff::KeepRunning
        },
        security: if flags.3 {
            SecurityProfile::Restricted
        } else {
            SecurityProfile::Baseline
        },
        constraints,
        addresses: if flags.4 {
            Addresses {
                round_robin_v6: "fdff::1".parse().ok(),
                ..Addresses::default()
            }
        } else {
            Addresses::default()
        },
        allow: rules,
    })
}

fn rules() -> impl Strategy<Value = Vec<AllowRule>> {
    let caller = (name(), option::of(name())).prop_map(|(application, service)| match service {
        Some(service) => format!("{application}/{service}"),
        None => application,
    });
    let range = (select(vec![Protocol::Tcp, Protocol::Udp]), 1_u16.., 1_u16..);
    let range = range.prop_map(|(protocol, a, b)| PortRange {
        protocol,
        first: a.min(b),
        last: a.max(b),
    });
    let rule = (option::of(caller), option::of(name()), vec(range, 0..3));
    let rule = rule.prop_map(|(from, organization, ports)| AllowRule {
        organization: organization.or_else(|| from.is_none().then(|| "root".to_owned())),
        from,
        ports,
    });
    vec(rule, 0..3)
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let application = (name(), text(), vec(service(), 0..3));
    vec(application, 0..3).prop_map(|applications| {
        let mut descriptor = Descriptor {
            form: Form::Native,
            customer: None,
            applications: Vec::new(),
        };
        let mut has_address = false;
        for (name, description, services) in applications {
            if descriptor.applications.iter().any(|other| other.name == name) {
                continue;
            }
            let mut application = ApplicationDescriptor {
                name,
                description,
                requested_id: None,
                services: Vec::new(),
            };
            for mut service in services {
                if application.services.iter().all(|other| other.name != service.name) {
                    // An address may be wished for once.
                    if has_address {
                        service.addresses = Addresses::default();
                    }
                    has_address |= !service.addresses.is_empty();
                    application.services.push(service);
                }
            }
            descriptor.applications.push(application);
        }
        descriptor
    })
}

/// Trees of words that mean something to either form, so that walkers get far.
fn tree() -> impl Strategy<Value = Value> {
    let keys = vec![
        "application",
        "applications",
        "services",
        "image",
        "replicas",
        "environment",
        "command",
        "ports",
        "placement",
        "addresses",
        "sla_version",
        "customerID",
        "application_name",
        "application_namespace",
        "microservices",
        "microservice_name",
        "microservice_namespace",
        "virtualization",
        "code",
        "constraints",
        "type",
        "memory",
        "vcpus",
        "port",
        "connectivity",
        "volumes",
        "cpu",
        "user",
        "restart",
        "platform",
        "arch",
        "round_robin",
        "x.y",
    ];
    let words = select(vec![
        "v2.0",
        "default",
        "web",
        "container",
        "nginx",
        "direct",
        "8080:80",
        "1MiB",
        "A=1",
        "",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.prop_map(Value::from),
        // Without control characters: JSON takes DEL and its like as they are, YAML does not.
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 200, 8, move |inner| {
        prop_oneof![
            1 => vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => btree_map(select(keys.clone()), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())),
        ]
    })
}

const SAMPLES: [&str; 4] = [
    include_str!("descriptors/good/sla-sensors.json"),
    include_str!("descriptors/good/sla-misspelt.yaml"),
    include_str!("descriptors/good/native-full.yaml"),
    include_str!("descriptors/bad/native-many.yaml"),
];

proptest! {
    #[test]
    fn random_bytes_never_panic(data in vec(any::<u8>(), 0..400)) {
        fuzz_descriptor(&data);
    }

    #[test]
    fn random_trees_never_panic(tree in tree()) {
        fuzz_descriptor(tree.to_string().as_bytes());
    }

    #[test]
    fn damaged_samples_never_panic(
        sample in select(SAMPLES.to_vec()), at in any::<prop::sample::Index>(), cut in 0_usize..40, put in "[\\[\\]{}:,\"'&*!|>#\n \t~a0-]{0,6}",
    ) {
        let mut data = sample.as_bytes().to_vec();
        let start = at.index(data.len());
        let end = (start + cut).min(data.len());
        data.splice(start..end, put.bytes());
        fuzz_descriptor(&data);
    }

    #[test]
    fn what_is_printed_reads_back(descriptor in descriptor()) {
        let yaml = to_native_yaml(&descriptor);
        let parsed = parse(yaml.as_bytes(), Format::Yaml);
        prop_assert_eq!(parsed.as_ref().map(|parsed| &parsed.descriptor), Ok(&descriptor), "{}", yaml);
        let json = serde_json::to_vec(&descriptor).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Descriptor>(&json).unwrap(), descriptor);
    }

    #[test]
    fn json_and_yaml_agree(tree in tree()) {
        // A JSON text is YAML too, so both readers must come to the same answer.
        let text = tree.to_string();
        let (json, yaml) = (parse(text.as_bytes(), Format::Json), parse(text.as_bytes(), Format::Yaml));
        prop_assert_eq!(json, yaml, "{}", text);
    }
}

/// Inputs that are made to be slow or to swell; each must be answered in no time and in few words.
#[test]
fn hostile_documents_are_cheap() {
    let key = "k".repeat(100_000);
    let long_path = format!("{{\"{key}\": [{}1]}}", "1,".repeat(25_000));
    let services = |entry: &str| format!("{{application: a, services: {{{}}}}}", entry.repeat(20_000));
    let aliases = format!("a: &a [{}]\nb: [{}]\n", "1,".repeat(40_000), "*a,".repeat(40_000));
    let merges = format!("a: &a {{b: 1}}\nc: {{{}}}\n", "<<: *a, ".repeat(20_000));
    let hostile = [
        long_path,
        services("x: {}, "),
        services("? [] : 1,"),
        aliases,
        merges,
        "[".repeat(MAX_BYTES),
        "- ".repeat(MAX_BYTES / 2),
        "? ".repeat(MAX_BYTES / 2),
        "\"".repeat(MAX_BYTES),
        "&a ".repeat(MAX_BYTES / 3),
        "{".repeat(MAX_BYTES),
        "a: ".repeat(MAX_BYTES / 3),
        format!(
            "{{\"sla_version\": \"v2.0\", \"applications\": [{}{{}}]}}",
            "{},".repeat(80_000)
        ),
    ];
    for text in hostile {
        let text = &text[..text.len().min(MAX_BYTES)];
        for format in [Format::Json, Format::Yaml, Format::Auto] {
            let mistakes = parse(text.as_bytes(), format).unwrap_err();
            let bytes: usize = mistakes.iter().map(|mistake| mistake.to_string().len()).sum();
            assert!(
                bytes < MAX_BYTES,
                "{} mistakes of {bytes} bytes for {:.60}",
                mistakes.len(),
                text
            );
        }
    }
}

fn native(service: Value) -> Vec<u8> {
    json!({"application": "a", "services": {"b": service}})
        .to_string()
        .into_bytes()
}

fn codes(bytes: &[u8]) -> Vec<Code> {
    parse(bytes, Format::Auto)
        .err()
        .unwrap_or_default()
        .iter()
        .map(|mistake| mistake.code)
        .collect()
}

#[test]
fn limits_hold() {
    let accepted = |service: Value| codes(&native(service)).is_empty();
    assert!(accepted(json!({"image": "a", "command": ["x".repeat(MAX_LONG_TEXT)]})));
    assert!(!accepted(
        json!({"image": "a", "command": ["x".repeat(MAX_LONG_TEXT + 1)]})
    ));
    assert!(accepted(
        json!({"image": "a", "working_dir": format!("/{}", "x".repeat(MAX_TEXT - 1))})
    ));
    assert!(!accepted(
        json!({"image": "a", "working_dir": format!("/{}", "x".repeat(MAX_TEXT))})
    ));
    assert!(accepted(json!({"image": "a", "args": vec!["x"; MAX_ENTRIES]})));
    assert!(!accepted(json!({"image": "a", "args": vec!["x"; MAX_ENTRIES + 1]})));
    assert!(accepted(json!({"image": "a", "replicas": 1000})) && accepted(json!({"image": "a", "replicas": 0})));
    let long = "x".repeat(MAX_LONG_TEXT - 10);
    assert_eq!(
        codes(&native(json!({"image": "a", "args": [long, long, long]}))),
        [Code::TooLarge]
    );
    let huge = [native(json!({"image": "a"})), vec![b' '; MAX_BYTES]].concat();
    assert_eq!(codes(&huge), [Code::TooLarge]);
}

#[test]
fn a_spec_names_its_path_and_is_pinned_by_a_digest() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let bytes = native(json!({"image": format!("hello@{digest}"), "replicas": 3}));
    let descriptor = parse(&bytes, Format::Auto).unwrap().descriptor;
    let nobody = RawId::from_bytes([7; 12]);
    let spec = descriptor.applications[0].services[0].to_spec(OrganizationId(nobody), ApplicationId(nobody), "a");
    assert_eq!((spec.replicas, spec.template.path.as_str()), (3, "a/b"));
    assert_eq!(spec.template.image, format!("docker.io/library/hello@{digest}"));
    assert_eq!(spec.template.image_digest, Some(digest));
}

#[test]
fn every_code_is_documented() {
    let page = include_str!("../../docs/descriptor.md");
    for code in Code::ALL {
        assert!(
            page.contains(&format!("| `{code}` |")),
            "docs/descriptor.md explains `{code}`"
        );
    }
}
