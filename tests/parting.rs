//! A file that takes a database's place is not combined with the log that our locks keep beside the name.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use woodchuck::capture::{CaptureError, FollowError, Follower, WakeUps};

use crate::support::cluster::wait_for;
use crate::support::sink::Ignore;

/// Runs SQL in another process, whose close is the application's last, and returns what it selected.
fn outside(db: &Path, sql: &str) -> String {
    let program = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=10, isolation_level=None)\n\
        print(*[row for part in sys.argv[2].split(';') for row in c.execute(part).fetchall()])\nc.close()";
    let done = Command::new("python3").args(["-c", program]).arg(db).arg(sql).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// A program that has the database open until it is dropped.
struct Holder(Child);

impl Holder {
    fn of(db: &Path) -> Holder {
        let program = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\nc.execute('SELECT count(*) FROM t').fetchall()\n\
            print('open', flush=True)\nsys.stdin.read()";
        let mut command = Command::new("python3");
        command.args(["-c", program]).arg(db).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "open\n");
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

struct Place {
    _dir: tempfile::TempDir,
    db: PathBuf,
    backup: PathBuf,
}

impl Place {
    /// A database with one row, a backup of it, and nothing in the log.
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (db, backup) = (dir.path().join("app.db"), dir.path().join("backup.db"));
        outside(&db, "PRAGMA journal_mode = WAL; CREATE TABLE t(v); INSERT INTO t VALUES ('backup')");
        std::fs::copy(&db, &backup).unwrap();
        Place { _dir: dir, db, backup }
    }

    fn log(&self) -> PathBuf {
        self.db.with_file_name("app.db-wal")
    }

    fn wait_until_parted(&self) {
        wait_for("the log without its name", || match self.log().exists() {
            true => Err("it has its name".to_owned()),
            false => Ok(()),
        });
    }

    fn files(&self) -> Vec<String> {
        let entries = self.db.parent().unwrap().read_dir().unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn rest(follower: &mut Follower) {
    wait_for("rest", || {
        follower.poll(&mut Ignore).map_err(|error| error.to_string())?;
        follower.maintain(&mut Ignore).map_err(|error| error.to_string())?;
        if follower.is_resting() { Ok(()) } else { Err(format!("{:?}", follower.wal_frames())) }
    });
}

#[test]
fn the_log_of_a_file_that_was_moved_away_goes_into_that_file_and_not_into_its_successor() {
    let place = Place::new();
    let follower = Follower::attach(&place.db).unwrap();
    let _wake_ups = WakeUps::new(&follower).unwrap();
    outside(&place.db, "INSERT INTO t VALUES ('last words')");
    assert!(std::fs::metadata(place.log()).unwrap().len() > 0, "the log is kept by us");

    let old = place.db.with_file_name("old.db");
    std::fs::rename(&place.db, &old).unwrap();
    std::fs::rename(&place.backup, &place.db).unwrap();
    place.wait_until_parted();
    assert_eq!(outside(&place.db, "INSERT INTO t VALUES ('new'); SELECT v FROM t"), "('backup',) ('new',)");
    follower.abandon();
    assert_eq!(place.files(), ["app.db", "old.db"]);
    assert_eq!(outside(&old, "SELECT v FROM t"), "('backup',) ('last words',)");
    assert_eq!(outside(&place.db, "SELECT v FROM t"), "('backup',) ('new',)");
}

#[test]
fn content_that_is_copied_over_a_resting_database_is_not_covered_by_its_log() {
    let place = Place::new();
    let mut follower = Follower::attach(&place.db).unwrap();
    let _wake_ups = WakeUps::new(&follower).unwrap();
    outside(&place.db, "INSERT INTO t VALUES ('after the backup')");
    rest(&mut follower);
    assert!(std::fs::metadata(place.log()).unwrap().len() > 0, "the log is kept by us");

    std::fs::write(&place.db, std::fs::read(&place.backup).unwrap()).unwrap();
    place.wait_until_parted();
    assert_eq!(outside(&place.db, "INSERT INTO t VALUES ('new'); SELECT v FROM t"), "('backup',) ('new',)");
    let error = follower.poll(&mut Ignore).unwrap_err();
    assert!(matches!(error, FollowError::Capture(CaptureError::Overwritten { .. })), "{error:?}");
    follower.abandon();
    assert_eq!(outside(&place.db, "SELECT v FROM t"), "('backup',) ('new',)");
    assert_eq!(place.files(), ["app.db", "backup.db"]);
}

/// The copy can come after the last checkpoint and before anybody has looked at the file.
#[test]
fn content_that_was_copied_before_the_database_came_to_rest_is_noticed() {
    let place = Place::new();
    let mut follower = Follower::attach(&place.db).unwrap();
    outside(&place.db, "INSERT INTO t VALUES ('after the backup')");
    wait_for("a checkpoint of somebody else's", || {
        follower.poll(&mut Ignore).map_err(|error| error.to_string())?;
        match outside(&place.db, "PRAGMA wal_checkpoint").as_str() {
            "(0, 1, 1)" => Ok(()),
            said => Err(said.to_owned()),
        }
    });
    std::fs::write(&place.db, std::fs::read(&place.backup).unwrap()).unwrap();
    let mut looks = 0;
    let error = loop {
        looks += 1;
        match follower.poll(&mut Ignore) {
            Err(error) => break error,
            Ok(_) => assert!(looks < 1000 && !follower.is_resting(), "it came to rest"),
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    assert!(matches!(error, FollowError::Capture(CaptureError::Overwritten { .. })), "{error:?}");
    follower.abandon();
    assert_eq!(place.files(), ["app.db", "backup.db"], "the log went with what it belonged to");
    assert_eq!(outside(&place.db, "SELECT v FROM t"), "('backup',)");
}

/// Nobody else has those.
#[test]
fn commits_that_were_not_read_before_the_file_was_written_over_are_kept() {
    let place = Place::new();
    let mut follower = Follower::attach(&place.db).unwrap();
    outside(&place.db, "INSERT INTO t VALUES ('read')");
    rest(&mut follower);
    let _wake_ups = WakeUps::new(&follower).unwrap();
    outside(&place.db, "INSERT INTO t VALUES ('not read')");
    follower.note_overwritten();
    std::fs::write(&place.db, std::fs::read(&place.backup).unwrap()).unwrap();
    place.wait_until_parted();
    let kept = follower.abandon().unwrap();
    assert_eq!(outside(&place.db, "SELECT v FROM t"), "('backup',)");
    let log = std::fs::read(&kept).unwrap();
    assert!(log.windows(8).any(|bytes| bytes == b"not read"), "{}", kept.display());
}

#[test]
fn a_log_that_others_use_keeps_its_name() {
    let place = Place::new();
    let mut follower = Follower::attach(&place.db).unwrap();
    let wake_ups = WakeUps::new(&follower).unwrap();
    outside(&place.db, "INSERT INTO t VALUES ('last words')");
    follower.poll(&mut Ignore).unwrap();
    let holder = Holder::of(&place.db);
    while wake_ups.wait(std::time::Duration::from_millis(50)) {}
    std::fs::rename(&place.backup, &place.db).unwrap();
    assert!(wake_ups.wait(std::time::Duration::from_secs(10)), "the new name is told");
    let error = follower.poll(&mut Ignore).unwrap_err();
    assert!(matches!(error, FollowError::Capture(CaptureError::Replaced { .. })), "{error:?}");
    follower.abandon();
    assert!(place.files().contains(&"app.db-wal".to_owned()), "the program that uses it goes on: {:?}", place.files());
    drop(holder);
}

/// Writing the log back, checkpoints and times of the file are no content of another program.
#[test]
fn an_application_that_comes_and_goes_does_not_part_the_database_from_its_log() {
    let place = Place::new();
    let mut follower = Follower::attach(&place.db).unwrap();
    let _wake_ups = WakeUps::new(&follower).unwrap();
    for round in 0..20 {
        let checkpoint = if round % 3 == 0 { "PRAGMA wal_checkpoint" } else { "SELECT 1" };
        outside(
            &place.db,
            &format!("INSERT INTO t VALUES ({round}); DELETE FROM t WHERE v = {}; {checkpoint}", round - 3),
        );
        if round % 2 == 0 {
            rest(&mut follower);
        }
        assert!(place.log().exists(), "round {round}");
    }
    rest(&mut follower);
    follower.detach().unwrap();
    assert_eq!(outside(&place.db, "SELECT count(*) FROM t"), "(4,)");
}

/// A checkpoint leaves out pages whose newest frame is behind the pin: the file has neither that one nor the one before.
#[test]
fn a_time_that_changes_beside_a_checkpoint_that_left_newer_frames_is_no_other_content() {
    let place = Place::new();
    let mut follower = Follower::attach(&place.db).unwrap();
    wait_for("a checkpoint up to the pin", || {
        for _ in 0..3 {
            follower.poll(&mut Ignore).map_err(|error| error.to_string())?;
            std::thread::sleep(std::time::Duration::from_millis(6));
        }
        let before = follower.position().frame.0;
        match outside(&place.db, "INSERT INTO t VALUES ('newer'); PRAGMA wal_checkpoint") {
            said if before > 0 && said == format!("(0, {}, {before})", before + 1) => Ok(()),
            said => Err(said),
        }
    });
    follower.refuse_other_content().unwrap();
    assert!(std::process::Command::new("touch").arg(&place.db).status().unwrap().success());
    follower.refuse_other_content().unwrap();
    follower.poll(&mut Ignore).unwrap();
    follower.refuse_other_content().unwrap();
    follower.detach().unwrap();
}
