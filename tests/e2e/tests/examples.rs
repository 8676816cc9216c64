//! Every file in examples/ through the whole tree, and images from a registry with a password.

use roble_e2e::{Loose, Tree, command, get, wait_for};
use std::process::{Command, Stdio};

#[test]
fn every_example_runs() {
    let tree = Tree::up_with("examples", &[("ROBLE_NODE_LABELS", "zone=edge")]);
    let greets = |address: &str, text: &str| get(address).is_some_and(|body| body.starts_with(text));
    let apply = |file: &str| {
        let applied = tree.apply_file(file);
        assert!(applied.ok, "{file}: {}", applied.err);
        applied
    };
    let delete = |application: &str| {
        tree.must(&["delete", "app", application, "--wait"]);
        assert!(tree.containers().is_empty(), "{application}: a container is left");
    };

    apply("examples/hello.yaml");
    tree.must(&["wait", "hello/web", "--for", "running", "--timeout", "60s"]);
    let both = || {
        ["10.99.77.2:18080", "10.99.77.3:18080"]
            .iter()
            .all(|it| greets(it, "hello from the edge"))
    };
    wait_for("both replicas of hello.yaml to answer", 20, both);
    // The same application in Oakestra's form: what it says is taken over.
    let sla = apply("examples/hello-sla.json");
    assert!(sla.out.contains("updated"), "{}", sla.out);
    wait_for("the SLA form to be what runs", 60, || {
        let service = tree.json(&["get", "service", "hello/web"]);
        service["up_to_date"] == 2 && service["running"] == 2
    });
    wait_for("both replicas of hello-sla.json to answer", 20, both);
    delete("hello");

    apply("examples/job.yaml");
    tree.must(&["wait", "job/once", "--for", "completed", "--timeout", "60s"]);
    let job = tree.json(&["get", "instance", "job/once.0"]);
    assert_eq!((&job["exit_code"], &job["restarts"]), (&0.into(), &0.into()), "{job}");
    delete("job");

    apply("examples/placed.yaml");
    tree.must(&["wait", "placed/reader", "--for", "running", "--timeout", "60s"]);
    delete("placed");

    apply("examples/restricted.yaml");
    tree.must(&["wait", "restricted/web", "--for", "running", "--timeout", "60s"]);
    let containers = tree.containers();
    let (_, (_, process)) = containers.first_key_value().expect("one runs");
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    assert!(status.contains("Uid:\t65532\t65532"), "{status}");
    wait_for("restricted.yaml to answer", 20, || {
        ["10.99.77.2:18081", "10.99.77.3:18081"]
            .iter()
            .any(|it| greets(it, "hello without root"))
    });
    delete("restricted");
    drop(tree.down());
}

/// Frames that the recorder of `examples/video.yaml` says have come: the last count of each time it listened.
fn frames(tree: &Tree) -> u64 {
    let log = tree.roble(&["logs", "video/recorder.0"]).out;
    let counts = log
        .lines()
        .filter_map(|line| line.split_once("frame=")?.1.trim().parse().ok());
    counts.max().unwrap_or(0)
}

#[test]
fn video_comes_from_the_camera_to_the_recorder() {
    let tree = Tree::up("video");
    tree.import_ffmpeg();
    let applied = tree.apply_file("examples/video.yaml");
    assert!(applied.ok, "{}", applied.err);
    wait_for("a hundred frames", 180, || frames(&tree) >= 100);
    tree.must(&["delete", "app", "video", "--wait"]);
    drop(tree.down());
}

#[test]
fn a_label_that_no_node_has_keeps_an_example_waiting_and_says_why() {
    let tree = Tree::up("placed");
    assert!(tree.apply_file("examples/placed.yaml").ok);
    wait_for("the reason", 30, || {
        tree.must(&["explain", "placed/reader.0"]).contains("label-mismatch")
    });
    assert!(tree.containers().is_empty());
    drop(tree.down());
}

const USER: &str = "reader";
const PASSWORD: &str = "open sesame";
/// The machine's own address in the tree's network; nodes reach it from their namespaces.
const REGISTRY: &str = "10.99.77.1:5077";

/// Starts a registry that asks for a password, with its files in `folder`.
fn registry(folder: &str) -> Loose {
    std::fs::create_dir_all(folder).expect("a folder");
    let users = command("htpasswd", &["-Bbn", USER, PASSWORD]);
    std::fs::write(format!("{folder}/htpasswd"), users.out).expect("written");
    // JSON is YAML.
    let config = serde_json::json!({
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": format!("{folder}/images")}},
        "http": {"addr": REGISTRY},
        "auth": {"htpasswd": {"realm": "test", "path": format!("{folder}/htpasswd")}},
    });
    std::fs::write(format!("{folder}/registry.yml"), config.to_string()).expect("written");
    let mut command = Command::new("docker-registry");
    command.args(["serve", &format!("{folder}/registry.yml")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Loose::of(
        command
            .spawn()
            .expect("docker-registry is installed by scripts/install-deps.sh --tests"),
    );
    wait_for("the registry to listen", 20, || {
        std::net::TcpStream::connect(REGISTRY).is_ok()
    });
    started
}

/// What a node shows the registry, in the format of Docker's config.json.
fn credentials(password: &str) -> String {
    let pair = command("sh", &["-c", &format!("printf '%s' '{USER}:{password}' | base64 -w0")]).out;
    serde_json::json!({"auths": {REGISTRY: {"auth": pair}}}).to_string()
}

#[test]
fn an_image_comes_from_a_registry_with_a_password() {
    let tree = Tree::up_with(
        "registry",
        &[
            ("ROBLE_NODE_REGISTRY_INSECURE", REGISTRY),
            ("ROBLE_NODE_REGISTRY_CREDENTIALS", "{folder}.docker.json"),
        ],
    );
    let shown = tree.beside("docker.json");
    std::fs::write(&shown, credentials("wrong")).expect("written");
    let _registry = registry(&tree.path("registry"));
    let pushed = command(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            "--dest-creds",
            &format!("{USER}:{PASSWORD}"),
            &format!("oci-archive:{}", tree.hello_image().display()),
            &format!("docker://{REGISTRY}/hello:1"),
        ],
    );
    assert!(pushed.ok, "{}", pushed.err);

    let service = format!(
        "application: private\nservices:\n  web:\n    image: {REGISTRY}/hello:1\n    replicas: 2\n    \
         ports: [\"18080:8080\"]\n    environment: {{GREETING: from the registry}}\n    cpu: 50m\n    memory: 32MiB\n"
    );
    let applied = tree.apply(&service);
    assert!(applied.ok, "{}", applied.err);
    wait_for("the registry's refusal to be told", 60, || {
        tree.json(&["ps"]).to_string().contains("registry-unauthorized")
    });
    assert!(tree.containers().is_empty());
    assert!(
        !tree.log("n1").contains(PASSWORD) && !tree.log("n1").contains("wrong"),
        "no password in a log"
    );

    // The file is read again for each pull: nothing is restarted.
    std::fs::write(&shown, credentials(PASSWORD)).expect("written");
    tree.must(&["wait", "private/web", "--for", "running", "--timeout", "120s"]);
    wait_for("both replicas to answer", 20, || {
        ["10.99.77.2:18080", "10.99.77.3:18080"]
            .iter()
            .all(|it| get(it).is_some_and(|body| body.starts_with("from the registry")))
    });
    let instances = tree.json(&["ps"]);
    let pinned = |one: &serde_json::Value| one["image_digest"].as_str().is_some_and(|it| it.starts_with("sha256:"));
    assert!(instances.as_array().expect("a list").iter().all(pinned), "{instances}");
    tree.must(&["delete", "app", "private", "--wait"]);
    let _ = std::fs::remove_file(&shown);
    drop(_registry);
    drop(tree.down());
}
