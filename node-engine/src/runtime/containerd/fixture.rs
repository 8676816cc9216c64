//! For tests: a containerd of one's own in a temporary folder, a small image made from busybox, a registry with a
//! password. Needs root and the programs that `scripts/install-deps.sh` installs.

use super::{ContainerdConfig, ContainerdRuntime};
use crate::runtime::suite::DEADLINE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use tempfile::TempDir;

/// The containerd namespace of fixtures.
pub const NAMESPACE: &str = "roble-test";

/// The image that a fixture has imported, as a user writes it.
pub const IMAGE: &str = "roble-suite";

/// The same image under the name of a registry that does not answer, so that nothing is asked of the outside.
pub const LOCAL_IMAGE: &str = "127.0.0.1:1/roble-suite";

const PROGRAMS: &[&str] = &[
    "sh", "sleep", "echo", "cat", "id", "env", "pwd", "head", "dd", "tail", "ls", "hostname", "wc",
];

/// A private containerd. Dropping it ends it, its containers and their mounts.
#[derive(Debug)]
pub struct Containerd {
    folder: TempDir,
    child: Mutex<Option<Child>>,
    cgroup_parent: String,
}

impl Containerd {
    /// Starts containerd and imports [`IMAGE`], packed.
    ///
    /// # Panics
    /// A program is missing, or containerd does not start.
    pub fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::Builder::new()
            .prefix("roble-ctd-")
            .tempdir()
            .expect("temporary folder");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup_parent = format!("/roble-test/{}-{number}", std::process::id());
        let root = folder.path().display();
        // Only what is used: the CRI plugin and unusable snapshotters cost seconds at start.
        let config = format!(
            r#"version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]
[grpc]
address = "{root}/c.sock"
[ttrpc]
address = "{root}/t.sock"
"#
        );
        std::fs::write(folder.path().join("config.toml"), config).expect("config");
        let fixture = Self {
            folder,
            child: Mutex::new(None),
            cgroup_parent,
        };
        fixture.start_daemon();
        let image = fixture.make_image(IMAGE, super::super::reference::machine_architecture());
        fixture.import(&image);
        let full = format!("docker.io/library/{IMAGE}:latest");
        fixture.ctr(&["images", "tag", &full, &format!("{LOCAL_IMAGE}:latest")]);
        fixture
    }

    /// Its configuration, with a state directory that is kept between calls.
    pub fn config(&self) -> ContainerdConfig {
        let mut config = ContainerdConfig::new("node", self.folder.path().join("node"));
        config.socket = self.socket();
        config.namespace = NAMESPACE.to_owned();
        config.cgroup_parent.clone_from(&self.cgroup_parent);
        config
    }

    /// A runtime on it, as a fresh process of the engine would open it.
    pub fn open(&self) -> ContainerdRuntime {
        ContainerdRuntime::new(self.config()).expect("configuration of the fixture")
    }

    /// Folder for files of a test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Kills containerd with SIGKILL, leaving shims and containers.
    pub fn kill_daemon(&self) {
        if let Some(mut child) = self.child.lock().expect("no test panicked here").take() {
            child.kill().expect("kill containerd");
            child.wait().expect("containerd ends");
        }
    }

    /// Starts containerd again after [`Self::kill_daemon`].
    pub fn start_daemon(&self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .expect("log");
        let mut command = Command::new("containerd");
        command
            .arg("--config")
            .arg(self.folder.path().join("config.toml"))
            .stdin(Stdio::null());
        command.stdout(log.try_clone().expect("log")).stderr(log);
        let child = spawn(&mut command);
        *self.child.lock().expect("no test panicked here") = Some(child);
        wait_until("containerd to answer", || self.try_ctr(&["version"]).is_some());
    }

    /// Runs `ctr` in the fixture's namespace and returns what it prints.
    ///
    /// # Panics
    /// It fails.
    pub fn ctr(&self, arguments: &[&str]) -> String {
        self.try_ctr(arguments)
            .unwrap_or_else(|| panic!("ctr {arguments:?} failed; see {}", self.folder.path().display()))
    }

    fn try_ctr(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("ctr");
        command
            .arg("-a")
            .arg(self.socket())
            .args(["-n", NAMESPACE])
            .args(arguments);
        let output = command.output().unwrap_or_else(|error| missing("ctr", &error));
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Imports an image archive without unpacking it.
    pub fn import(&self, archive: &Path) {
        self.ctr(&["images", "import", "--no-unpack", &archive.display().to_string()]);
    }

    /// Makes an archive of an image named `name` for `architecture`: busybox, user `app` (1000:1001, also in group 50),
    /// environment `FROM_IMAGE=yes`, command `sh -c "echo image"`.
    pub fn make_image(&self, name: &str, architecture: &str) -> PathBuf {
        let work = tempfile::tempdir_in(self.folder.path()).expect("folder");
        let root = work.path().join("root");
        for folder in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
            std::fs::create_dir_all(root.join(folder)).expect("folder of the image");
        }
        let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        std::fs::set_permissions(root.join("tmp"), everyone).expect("mode of /tmp");
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let busybox = busybox.unwrap_or_else(|| missing("busybox (static)", &"not found"));
        std::fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
        for program in PROGRAMS {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(program)).expect("link");
        }
        let passwd = "root:x:0:0:root:/:/bin/sh\napp:x:1000:1001:app:/:/bin/sh\n";
        std::fs::write(root.join("etc/passwd"), passwd).expect("passwd");
        std::fs::write(root.join("etc/group"), "root:x:0:\nstaff:x:50:app\napp:x:1001:\n").expect("group");
        run(Command::new("tar")
            .arg("-C")
            .arg(&root)
            .args(["-cf"])
            .arg(work.path().join("layer.tar"))
            .arg("."));
        let layer = std::fs::read(work.path().join("layer.tar")).expect("layer");
        let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&layer)));
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": {"Env": ["FROM_IMAGE=yes", "SHADOWED=image"], "Cmd": ["sh", "-c", "echo image"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let manifest =
            json!([{"Config": "config.json", "RepoTags": [format!("{name}:latest")], "Layers": ["layer.tar"]}]);
        std::fs::write(work.path().join("config.json"), config.to_string()).expect("config");
        std::fs::write(work.path().join("manifest.json"), manifest.to_string()).expect("manifest");
        let archive = self
            .folder
            .path()
            .join(format!("{}-{architecture}.tar", name.replace('/', "-")));
        let names = ["manifest.json", "config.json", "layer.tar"];
        run(Command::new("tar")
            .arg("-C")
            .arg(work.path())
            .arg("-cf")
            .arg(&archive)
            .args(names));
        archive
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("c.sock")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.kill_daemon();
        let tasks = self
            .folder
            .path()
            .join("state/io.containerd.runtime.v2.task")
            .join(NAMESPACE);
        for task in std::fs::read_dir(&tasks).into_iter().flatten().flatten() {
            let pid = std::fs::read_to_string(task.path().join("init.pid")).unwrap_or_default();
            kill_pid(pid.trim());
        }
        // Only shims of this containerd name its socket.
        let socket = self.socket().display().to_string();
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            if command.contains("containerd-shim") && command.split('\0').any(|part| part == socket) {
                kill_pid(&process.file_name().to_string_lossy());
            }
        }
        for mount in mounts_below(self.folder.path()).into_iter().rev() {
            let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
        }
        let parent = self.cgroup_parent.trim_start_matches('/').to_owned();
        // A group can be removed once the killed processes are gone.
        let start = Instant::now();
        while !remove_groups(&parent) && start.elapsed() < DEADLINE {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Removes a group and its children in every hierarchy; whether none is left.
fn remove_groups(parent: &str) -> bool {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let mut groups: Vec<_> = hierarchies.map(|hierarchy| hierarchy.path().join(parent)).collect();
    groups.push(Path::new("/sys/fs/cgroup").join(parent));
    for group in &groups {
        for child in std::fs::read_dir(group).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(child.path());
        }
        let _ = std::fs::remove_dir(group);
    }
    groups.iter().all(|group| !group.exists())
}

/// Mount points below a folder, in the order they were mounted.
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from);
    points.filter(|point| point.starts_with(folder)).collect()
}

/// A registry on a loopback port that asks for a password. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    /// `127.0.0.1:port`.
    pub host: String,
}

impl Registry {
    /// The only user.
    pub const USER: &'static str = "reader";
    /// And the password.
    pub const PASSWORD: &'static str = "open sesame";

    /// Starts a registry that keeps its files in `folder`.
    ///
    /// # Panics
    /// A program is missing, or the registry does not start.
    pub fn start(folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port")
            .port();
        let host = format!("127.0.0.1:{port}");
        let users = Command::new("htpasswd")
            .args(["-Bbn", Self::USER, Self::PASSWORD])
            .output();
        let users = users.unwrap_or_else(|error| missing("htpasswd", &error)).stdout;
        std::fs::write(folder.join("htpasswd"), users).expect("htpasswd");
        let config = json!({
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": folder.join("registry")}},
            "http": {"addr": host},
            "auth": {"htpasswd": {"realm": "test", "path": folder.join("htpasswd")}},
        });
        // JSON is YAML.
        std::fs::write(folder.join("registry.yml"), config.to_string()).expect("config");
        let log = std::fs::File::create(folder.join("registry.log")).expect("log");
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(folder.join("registry.yml"))
            .stdin(Stdio::null());
        command.stdout(log.try_clone().expect("log")).stderr(log);
        let registry = Self {
            child: spawn(&mut command),
            host,
        };
        wait_until("the registry to listen", || {
            std::net::TcpStream::connect(&registry.host).is_ok()
        });
        registry
    }

    /// Pushes an archive made by [`Containerd::make_image`].
    pub fn push(&self, archive: &Path, name: &str) {
        let credentials = format!("{}:{}", Self::USER, Self::PASSWORD);
        let mut command = Command::new("skopeo");
        command.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            "--dest-creds",
            &credentials,
        ]);
        command.arg(format!("docker-archive:{}", archive.display()));
        run(command.arg(format!("docker://{}/{name}", self.host)));
    }

    /// Makes the tags of `entries` (architecture, tag) an index named `tag`; returns its digest.
    pub async fn push_index(&self, repository: &str, entries: &[(&str, &str)], tag: &str) -> String {
        let client = reqwest::Client::new();
        let url = |tag: &str| format!("http://{}/v2/{repository}/manifests/{tag}", self.host);
        let mut manifests = Vec::new();
        for (architecture, tag) in entries {
            let request = client.get(url(tag)).basic_auth(Self::USER, Some(Self::PASSWORD));
            let types =
                "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
            let answer = request.header("accept", types).send().await.expect("registry answers");
            let media_type = answer.headers()["content-type"].to_str().expect("text").to_owned();
            let body = answer.bytes().await.expect("manifest");
            manifests.push(json!({
                "mediaType": media_type, "size": body.len(),
                "digest": format!("sha256:{}", hex::encode(Sha256::digest(&body))),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let media_type = "application/vnd.docker.distribution.manifest.list.v2+json";
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).to_string();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&index)));
        let request = client.put(url(tag)).basic_auth(Self::USER, Some(Self::PASSWORD));
        let answer = request
            .header("content-type", media_type)
            .body(index)
            .send()
            .await
            .expect("registry answers");
        assert!(
            answer.status().is_success(),
            "{}",
            answer.text().await.unwrap_or_default()
        );
        digest
    }

    /// A credentials file with this password.
    pub fn credentials(&self, folder: &Path, password: &str) -> PathBuf {
        let path = folder.join(format!("auth-{}.json", password.len()));
        let auths = json!({"auths": {&self.host: {"username": Self::USER, "password": password}}});
        std::fs::write(&path, auths.to_string()).expect("credentials");
        path
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kill_pid(pid: &str) {
    if let Ok(pid) = pid.parse::<i32>()
        && pid > 1
    {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn spawn(command: &mut Command) -> Child {
    let name = command.get_program().to_string_lossy().into_owned();
    command.spawn().unwrap_or_else(|error| missing(&name, &error))
}

fn run(command: &mut Command) {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| missing(&name, &error));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn missing(program: &str, error: &dyn std::fmt::Display) -> ! {
    panic!("{program} cannot be run ({error}): install what the tests need with scripts/install-deps.sh")
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
