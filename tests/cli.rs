//! The command line as its users meet it: options, variables, the file, exit codes.

use std::path::Path;
use std::process::{Command, Output};

use woodchuck::cli::args::Command as Parsed;
use woodchuck::cli::{Exit, Failure, config, parse};
use woodchuck::node::{Conflict, Durability, RunConfig};

fn woodchuck(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_woodchuck")).args(args).envs(env.iter().copied()).output().unwrap()
}

fn resolve(args: &[&str], env: &[(&str, &str)]) -> Result<RunConfig, Failure> {
    let argv = ["woodchuck", "run"].iter().chain(args);
    let cli = parse(argv.copied())?.expect("no help asked for");
    let Parsed::Run(run) = cli.command else { panic!("not run") };
    config::run_config(*run, &|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("woodchuck.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

fn complaint(text: &str) -> String {
    let (_dir, path) = file(text);
    let failure = resolve(&["--config", &path], &[]).unwrap_err();
    assert_eq!(failure.exit, Exit::Usage, "{failure}");
    assert!(failure.hint.is_some(), "{failure}");
    failure.message.replace(&path, "FILE")
}

#[test]
fn defaults_are_those_of_the_manual() {
    let config = resolve(&["--db-path", "dir/app.db"], &[]).unwrap();
    assert_eq!(config.state_dir, Path::new("dir/app.db-woodchuck"));
    assert_eq!((config.log.shards, config.log.max_entries, config.log.replicas), (8, 1024, 1));
    assert_eq!(config.log.subject_prefix, "woodchuck-change-log");
    assert_eq!(config.log.stream_prefix, "woodchuck-changes");
    assert!(config.nats.urls.is_empty() && config.node_id.is_none() && config.tables.is_empty());
    assert!(config.publish && config.apply_changes && !config.log.compress);
    assert_eq!((config.capture.durability, config.apply.conflict), (Durability::Relaxed, Conflict::Column));
    assert_eq!(config.capture.wal_bytes_max, Some(64 << 20));
}

#[test]
fn marmots_way_of_writing_options_works() {
    let config = resolve(
        &[
            "-db-path",
            "a.db",
            "-node-id",
            "7",
            "-nats-url=nats://a:1,nats://b:2",
            "-shards",
            "3",
            "-max-log-entries=9",
            "-log-replicas",
            "3",
            "-subject-prefix",
            "s",
            "-stream-prefix",
            "t",
            "-compress=true",
            "-verbose",
        ],
        &[],
    )
    .unwrap();
    assert_eq!(config.node_id, Some(7));
    assert_eq!(config.nats.urls, ["nats://a:1", "nats://b:2"]);
    assert_eq!((config.log.shards, config.log.max_entries, config.log.replicas), (3, 9, 3));
    assert_eq!((config.log.subject_prefix.as_str(), config.log.stream_prefix.as_str()), ("s", "t"));
    assert!(config.log.compress);
    assert!(!resolve(&["--db-path", "a.db", "--compress=false"], &[]).unwrap().log.compress);
}

#[test]
fn every_option_is_a_key_of_the_file() {
    let (_dir, path) = file(
        r#"
        db_path = "x.db"
        state_dir = "state"
        node_id = 5
        nats_url = ["nats://a", "nats://b"]
        nats_user = "u"
        nats_password = "p"
        nats_ca_file = "ca.pem"
        shards = 2
        max_log_entries = 10
        log_replicas = 3
        subject_prefix = "s"
        stream_prefix = "t"
        compress = true
        tables = "a*,b"
        exclude_tables = ["c"]
        no_apply = true
        accept_restored = true
        [capture]
        poll_interval_ms = 7
        sync_interval_ms = 8
        durability = "strict"
        checkpoint_frames = 9
        wal_bytes_max = 0
        [log]
        before_images = true
        outbox_bytes_max = 11
        [apply]
        conflict = "row"
        cut_wait_ms = 12
        conflict_rows_max = 13
        "#,
    );
    let config = resolve(&["--config", &path], &[]).unwrap();
    assert_eq!((config.db_path.as_path(), config.state_dir.as_path()), (Path::new("x.db"), Path::new("state")));
    assert_eq!(config.nats.urls, ["nats://a", "nats://b"]);
    assert_eq!(config.nats.password.as_ref().unwrap().0, "p");
    assert!(!format!("{config:?}").contains("\"p\""), "a password never reaches a log");
    assert_eq!((config.tables, config.exclude_tables), (vec!["a*".into(), "b".into()], vec!["c".to_owned()]));
    assert_eq!((config.publish, config.apply_changes, config.accept_restored), (true, false, true));
    assert_eq!((config.capture.poll_interval.as_millis(), config.capture.sync_interval.as_millis()), (7, 8));
    assert_eq!((config.capture.durability, config.capture.wal_bytes_max), (Durability::Strict, None));
    assert_eq!((config.log.before_images, config.log.outbox_bytes_max), (true, 11));
    assert_eq!((config.apply.conflict, config.apply.conflict_rows_max), (Conflict::Row, 13));
}

#[test]
fn a_variable_of_a_section_wins_over_the_file() {
    let (_dir, path) = file("db_path = \"x.db\"\n[capture]\npoll_interval_ms = 7\nsync_interval_ms = 8\n");
    let config = resolve(&["--config", &path], &[("WOODCHUCK_CAPTURE_POLL_INTERVAL_MS", "70")]).unwrap();
    assert_eq!((config.capture.poll_interval.as_millis(), config.capture.sync_interval.as_millis()), (70, 8));
    let failure = resolve(&["--config", &path], &[("WOODCHUCK_CAPTURE_POLL_INTERVAL_MS", "soon")]).unwrap_err();
    assert!(failure.message.contains("capture.poll_interval_ms in WOODCHUCK_CAPTURE_POLL_INTERVAL_MS"), "{failure}");
}

/// Variables are the process's, so this goes through the program: what it complains about shows which value it took.
#[test]
fn an_option_wins_over_a_variable_and_a_variable_over_the_file() {
    let (_dir, path) = file("db_path = \"x.db\"\nshards = 3001\n");
    let complaint = |args: &[&str], env: &[(&str, &str)]| {
        let output = woodchuck(&[&["run", "--config", &path], args].concat(), env);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let variable = [("WOODCHUCK_SHARDS", "3002")];
    assert!(complaint(&[], &[]).contains("not 3001"));
    assert!(complaint(&[], &variable).contains("not 3002"));
    assert!(complaint(&["--shards", "3003"], &variable).contains("not 3003"));
}

#[test]
fn a_complaint_names_the_key_by_its_full_path() {
    assert_eq!(
        complaint("db_path='a'\n[capture]\npoll_interval_ms=0"),
        "capture.poll_interval_ms must be greater than 0"
    );
    assert_eq!(complaint("db_path='a'\n[capture]\npoll_interval=1"), "unknown key capture.poll_interval in FILE");
    assert_eq!(complaint("db-path='a'"), "unknown key db-path in FILE");
    assert_eq!(complaint("capture=1"), "capture in FILE is not a section");
    assert_eq!(complaint("db_path='a'\nshards=0"), "shards must be from 1 to 1024, not 0");
    let text = complaint("db_path='a'\n[log]\nbefore_images='yes'");
    assert!(text.starts_with("log.before_images in FILE: ") && text.contains("boolean"), "{text}");
    let text = complaint("db_path='a'\nnode_id=-1");
    assert!(text.starts_with("node_id in FILE: "), "{text}");
    let text = complaint("db_path='a'\nshards=\n");
    assert!(text.starts_with("FILE is not TOML at line 2"), "{text}");
    assert_eq!(
        complaint("db_path='a'\napply.conflict='none'"),
        "apply.conflict must be \"column\" or \"row\", not \"none\""
    );
    assert_eq!(complaint("db_path='a'\nnats_user='u'"), "nats_user is given without nats_password");
    assert_eq!(complaint("db_path='a'\nstream_prefix='a.b'"), "stream_prefix \"a.b\" is not a name that NATS takes");
    assert_eq!(complaint("shards=1"), "no database given");
}

#[test]
fn wrong_usage_ends_with_2_and_two_lines() {
    for args in [
        &["run"][..],
        &["run", "--db-path"],
        &["run", "--db-path", "a.db", "--shards", "many"],
        &["run", "--db-path", "a.db", "--frobnicate"],
        &["run", "--config", "/nonexistent/woodchuck.toml"],
        &["tail"],
        &["tail", "a.db", "--format", "xml"],
        &["tail", "a.db", "--once"],
        &["inspect"],
        &["status"],
        &["dance"],
        &[],
    ] {
        let output = woodchuck(args, &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{args:?}: {text}");
        assert!(lines[0].starts_with("error: ") && lines[1].starts_with("hint: "), "{args:?}: {text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn help_and_version_are_done() {
    for args in [&["--help"][..], &["run", "--help"], &["tail", "-h"], &["--version"]] {
        let output = woodchuck(args, &[]);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn cleanup_removes_the_state_directory_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    let state = dir.path().join("app.db-woodchuck");
    let args = ["cleanup", "--db-path", db.to_str().unwrap()];
    std::fs::write(&db, "a database").unwrap();
    assert_eq!(woodchuck(&args, &[]).status.code(), Some(0), "nothing to remove is done");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("state.db"), "").unwrap();
    std::fs::write(state.join("holiday.jpg"), "").unwrap();
    assert_eq!(woodchuck(&args, &[]).status.code(), Some(3), "somebody else's file is there");
    std::fs::remove_file(state.join("holiday.jpg")).unwrap();
    assert_eq!(woodchuck(&args, &[]).status.code(), Some(0));
    assert!(!state.exists() && db.exists());
}

#[test]
fn row_filters_come_from_options_variables_and_the_file_and_are_checked_before_anything_is_opened() {
    let (_dir, path) = file("db_path = \"app.db\"\nwhere = [\"t: a IN (1, 2)\", \"u: b = ';'\"]\n");
    let config = resolve(&["--config", &path], &[]).unwrap();
    assert_eq!(config.row_filters.text(), "t: a IN (1, 2); u: b = ';'");
    let (_dir, path) = file("db_path = \"app.db\"\nwhere = \"t: a = 1; u: b = 2\"\n");
    assert_eq!(resolve(&["--config", &path], &[]).unwrap().row_filters.text(), "t: a = 1; u: b = 2");
    let given = ["--config", &path, "--where", "t: a = 3", "--where", "\"x y\": \"z\" = ';'"];
    assert_eq!(resolve(&given, &[]).unwrap().row_filters.text(), "t: a = 3; x y: \"z\" = ';'");
    let output = woodchuck(&["run", "--db-path", "/nowhere/app.db"], &[("WOODCHUCK_WHERE", "t: a = 1; u: b ==")]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && text.contains("u: b =="), "{text}");
    assert!(complaint("db_path = \"a\"\nwhere = \"t: random() > 1\"").contains("non-deterministic"));
}
