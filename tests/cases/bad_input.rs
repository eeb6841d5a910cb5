//! Whatever is not a database that can be followed: one clear error, one hint, and nothing touched.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use super::{Application, database};

/// Names, contents and times of everything in a directory.
fn state(dir: &Path) -> BTreeMap<OsString, (Vec<u8>, SystemTime)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let content = std::fs::read(entry.path()).unwrap_or_default();
            (entry.file_name(), (content, entry.metadata().unwrap().modified().unwrap()))
        })
        .collect()
}

fn woodchuck(args: &[&str], path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_woodchuck")).args(args).arg(path).output().unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, what: &str) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(output.status.code(), Some(1), "{what}: {text}");
    assert!(lines.len() == 2 && lines[0].starts_with("error: ") && lines[1].starts_with("hint: "), "{what}: {text}");
    assert!(!lines[0].contains("panicked"), "{what}: {text}");
    assert!(output.stdout.is_empty(), "{what}: {}", String::from_utf8_lossy(&output.stdout));
}

/// What is done to the bytes of a database.
type Spoil = Box<dyn FnOnce(&mut Vec<u8>)>;

/// A closed database in a directory of its own, after something was done to its bytes.
fn spoiled(spoil: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    spoil(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn tail_refuses_what_is_no_wal_database_and_touches_nothing() {
    let cases: Vec<(&str, Spoil)> = vec![
        ("text", Box::new(|bytes| *bytes = b"this is a text file, not a database\n".repeat(200))),
        ("no bytes", Box::new(Vec::clear)),
        ("99 bytes", Box::new(|bytes| bytes.truncate(99))),
        ("a header alone", Box::new(|bytes| bytes.truncate(100))),
        ("half a page", Box::new(|bytes| bytes.truncate(2048))),
        (
            "noise, as an encrypted file",
            Box::new(|bytes| {
                let mut state = 1_u32;
                bytes.iter_mut().for_each(|byte| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *byte = (state >> 24) as u8;
                });
            }),
        ),
        ("zeros", Box::new(|bytes| bytes.fill(0))),
        ("a rollback journal database", Box::new(|bytes| bytes[18..20].fill(1))),
        ("a page size that does not exist", Box::new(|bytes| bytes[16..18].copy_from_slice(&[0x10, 0x01]))),
        ("a format of the future", Box::new(|bytes| bytes[18..20].fill(9))),
        ("an unknown encoding", Box::new(|bytes| bytes[56..60].copy_from_slice(&[0, 0, 0, 9]))),
        ("a damaged schema page", Box::new(|bytes| bytes[100] = 0x77)),
    ];
    for (what, spoil) in cases {
        let (dir, path) = spoiled(spoil);
        let before = state(dir.path());
        assert_refused(&woodchuck(&["tail"], &path), what);
        assert!(state(dir.path()) == before, "{what}: something was touched: {:?}", state(dir.path()).keys());
    }
}

#[test]
fn tail_and_inspect_refuse_what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let before = state(dir.path());
    let link = dir.path().join("loop");
    std::os::unix::fs::symlink(&link, &link).unwrap();
    for command in ["tail", "inspect"] {
        for what in [dir.path(), &dir.path().join("missing"), &path.join("below"), &link, Path::new("/dev/null")] {
            assert_refused(&woodchuck(&[command], what), &format!("{command} {}", what.display()));
        }
    }
    std::fs::remove_file(&link).unwrap();
    assert!(state(dir.path()) == before);
}

#[test]
fn inspect_never_panics_on_flipped_or_missing_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mut application = Application::start(&path);
    application.must("INSERT INTO t(v) VALUES('in the log')");
    application.must("DELETE FROM t WHERE id=1");
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let (whole, log) = (std::fs::read(&path).unwrap(), std::fs::read(&wal).unwrap());
    application.close();
    let mut state = 7_u64;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    for round in 0..60 {
        let copy = tempfile::tempdir().unwrap();
        let (db, side) = (copy.path().join("c.db"), copy.path().join("c.db-wal"));
        let (mut a, mut b) = (whole.clone(), log.clone());
        match round % 4 {
            0 => a[random(whole.len().min(300))] ^= 1 << random(8),
            1 => b[random(log.len())] ^= 1 << random(8),
            2 => a.truncate(random(whole.len())),
            _ => b.truncate(random(log.len())),
        }
        std::fs::write(&db, a).unwrap();
        std::fs::write(&side, b).unwrap();
        let before = self::state(copy.path());
        for view in ["summary", "frames", "transactions", "rows", "schema"] {
            let output = woodchuck(&["inspect", "--view", view], &db);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(matches!(output.status.code(), Some(0 | 1)), "round {round} {view}: {text}");
            assert!(!text.contains("panicked"), "round {round} {view}: {text}");
            if output.status.code() == Some(1) {
                assert!(text.starts_with("error: ") && text.lines().count() <= 2, "round {round} {view}: {text}");
            }
        }
        assert!(self::state(copy.path()) == before, "inspect wrote in round {round}");
    }
}

#[test]
fn tail_of_a_database_in_exclusive_locking_mode_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mut application = Application::start(&path);
    application.must("PRAGMA locking_mode=EXCLUSIVE");
    application.must("INSERT INTO t(v) VALUES(2)");
    let before = state(dir.path());
    let output = woodchuck(&["tail"], &path);
    assert_refused(&output, "exclusive");
    assert!(String::from_utf8_lossy(&output.stderr).contains("locked"));
    assert!(state(dir.path()) == before);
    assert_eq!(application.must("SELECT count(*) FROM t"), "[(2,)]");
    application.close();
}

/// Runs the program as somebody who may not write (or not read) what root made.
fn as_nobody(args: &[&str], path: &Path) -> Option<Output> {
    let program = "import os,sys\n\
                   os.setgroups([]); os.setgid(65534); os.setuid(65534)\n\
                   os.execv(sys.argv[1], sys.argv[1:])\n";
    let am_root = Command::new("id").arg("-u").output().unwrap().stdout.starts_with(b"0\n");
    if !am_root {
        return Some(woodchuck(args, path));
    }
    // A build directory that others cannot enter keeps the program from being run at all.
    let copy = std::env::temp_dir().join(format!("woodchuck-nobody-{}", std::process::id()));
    if !copy.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_woodchuck"), &copy).ok()?;
    }
    let output = Command::new("python3").args(["-c", program]).arg(&copy).args(args).arg(path).output().unwrap();
    let _ = std::fs::remove_file(&copy);
    Some(output)
}

#[test]
fn without_permission_there_is_one_clear_error_and_nothing_is_touched() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    // Nobody may read the file; nobody may write it or its directory.
    for (file, directory) in [(0o000, 0o755), (0o444, 0o555), (0o444, 0o755)] {
        mode(&path, file);
        mode(dir.path(), directory);
        let before = state(dir.path());
        let Some(output) = as_nobody(&["tail"], &path) else { return };
        assert_refused(&output, &format!("tail with {file:o} in {directory:o}"));
        if file == 0 {
            assert_refused(&as_nobody(&["inspect"], &path).unwrap(), "inspect of an unreadable file");
        } else {
            let output = as_nobody(&["inspect"], &path).unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "inspect needs no permission to write: {errors}");
        }
        assert!(state(dir.path()) == before, "{file:o} in {directory:o}");
    }
    mode(dir.path(), 0o755);
}
