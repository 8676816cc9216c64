//! `roble-root credential`, as a person runs it.

use std::process::Command;

#[test]
fn the_running_root_is_looked_for_where_the_configuration_says() {
    let folder = tempfile::tempdir().unwrap();
    let (file, state) = (folder.path().join("root.toml"), folder.path().join("elsewhere"));
    std::fs::write(&file, format!("state_dir = {state:?}\n")).unwrap();
    let named = [("--config", file.as_path()), ("--state-dir", state.as_path())];
    for (flag, value) in named {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roble-root"));
        let done = command.arg("credential").arg(flag).arg(value).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success());
        let socket = state.join("root.sock");
        assert!(said.contains(&*socket.to_string_lossy()), "{flag}: {said}");
    }
}
