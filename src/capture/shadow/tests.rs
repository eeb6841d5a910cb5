//! The shadow against a model that keeps every version of every page, through deaths, power failures and merges torn at any sector.

#[path = "../../../tests/support/random.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod random;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use random::Random;

use super::image::{DATABASE_NAME, JOURNAL_NAME, Shadow};
use super::{ShadowError, write_shadow};
use crate::capture::{FileIdentity, Position};
use crate::change::{PageError, PageSource};
use crate::format::{Checksum, FrameNo, PageNo, Salts};

const DATABASE: FileIdentity = FileIdentity { device: 1, inode: 2, born_ns: 3 };
const SECTOR_BYTES: usize = 512;

/// A version of the database. `None` is a page that came with growth and was never written: nobody may ask for it.
#[derive(Clone, Debug)]
struct Version {
    position: Position,
    pages: Vec<Option<Vec<u8>>>,
}

impl PageSource for Version {
    fn page_count(&self) -> u32 {
        self.position.page_count
    }
    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        Ok(Cow::Borrowed(self.pages[page.get() as usize - 1].as_ref().unwrap()))
    }
}

/// The bytes of both files.
#[derive(Clone)]
struct Files {
    image: Vec<u8>,
    journal: Vec<u8>,
}

impl Files {
    fn read(directory: &Path) -> Files {
        let read = |name| std::fs::read(directory.join(name)).unwrap();
        Files { image: read(DATABASE_NAME), journal: read(JOURNAL_NAME) }
    }

    fn write(&self, directory: &Path) {
        std::fs::write(directory.join(DATABASE_NAME), &self.image).unwrap();
        std::fs::write(directory.join(JOURNAL_NAME), &self.journal).unwrap();
    }
}

/// Each sector as it is in one or in the other; so is the length.
fn torn(old: &[u8], new: &[u8], random: &mut Random) -> Vec<u8> {
    let percent = *random.pick(&[0, 10, 50, 90, 100]);
    let length = if random.chance(percent) { new.len() } else { old.len() };
    let mut out = vec![0; length];
    for (nth, sector) in out.chunks_mut(SECTOR_BYTES).enumerate() {
        let from = if random.chance(percent) { new } else { old };
        let from = from.get(nth * SECTOR_BYTES..).unwrap_or_default();
        let count = from.len().min(sector.len());
        sector[..count].copy_from_slice(&from[..count]);
    }
    out
}

struct Scene {
    _dir: tempfile::TempDir,
    directory: PathBuf,
    random: Random,
    page_bytes: usize,
    shadow: Option<Shadow>,
    /// Since the last merge, which is the first.
    versions: Vec<Version>,
    /// What is on disk for certain, and the index of its version.
    durable: (Files, usize),
    /// A merge began and did not end: older versions are gone.
    is_merging: bool,
    frame: u32,
    counts: BTreeMap<&'static str, u64>,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let mut random = Random::new(seed);
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("state");
        std::fs::create_dir(&directory).unwrap();
        let page_bytes = *random.pick(&[512, 512, 1024, 4096, 65_536]);
        let image = dir.path().join("app.db");
        let connection = rusqlite::Connection::open(&image).unwrap();
        let pages = 3 + random.below(20);
        connection
            .execute_batch(&format!(
                "PRAGMA page_size = {page_bytes}; CREATE TABLE t(v); INSERT INTO t VALUES(randomblob({}))",
                pages * page_bytes
            ))
            .unwrap();
        drop(connection);
        let position = write_shadow(&directory, &image, DATABASE).unwrap();
        let pages =
            std::fs::read(&image).unwrap().chunks(page_bytes as usize).map(|page| Some(page.to_vec())).collect();
        let shadow = Shadow::open(&directory, &position).unwrap();
        Scene {
            durable: (Files::read(&directory), 0),
            _dir: dir,
            directory,
            random,
            page_bytes: page_bytes as usize,
            shadow: Some(shadow),
            versions: vec![Version { position, pages }],
            is_merging: false,
            frame: 0,
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn now(&self) -> &Version {
        self.versions.last().unwrap()
    }

    fn edit(&mut self, old: Option<&[u8]>, first: usize) -> Vec<u8> {
        let random = &mut self.random;
        let mut page = old.map_or_else(|| vec![0; self.page_bytes], <[u8]>::to_vec);
        match (random.below(10), old) {
            (0, Some(_)) => {}
            (1..7, Some(_)) => {
                for _ in 0..=random.below(4) {
                    let at = first + random.below((page.len() - first) as u64) as usize;
                    let count = (1 + random.below(24) as usize).min(page.len() - at);
                    page[at..at + count].copy_from_slice(&random.bytes(count));
                }
            }
            (7, Some(_)) => page[first..].fill(random.next() as u8),
            _ => {
                let bytes = random.bytes(page.len() - first);
                page[first..].copy_from_slice(&bytes);
            }
        }
        page
    }

    /// The next version, and the pages that the transaction wrote.
    fn next(&mut self) -> (Version, Vec<PageNo>) {
        let mut next = self.now().clone();
        let was = next.pages.len();
        let count = match self.random.below(10) {
            0 => 2 + self.random.below(was as u64) as usize,
            1 | 2 => was + 1 + self.random.below(12) as usize,
            _ => was,
        };
        next.pages.resize(count, None);
        let mut written: Vec<usize> =
            (0..self.random.below(6)).map(|_| self.random.below(count as u64) as usize).collect();
        // Some that are new are freed at once, and not written.
        written.extend((was..count).filter(|_| self.random.chance(85)));
        // One that was never written is not in any tree, so a transaction that touches it writes it whole; that is what edit() does.
        written.sort_unstable();
        written.dedup();
        for page in &written {
            let old = next.pages[*page].clone();
            next.pages[*page] = Some(self.edit(old.as_deref(), if *page == 0 { 100 } else { 0 }));
        }
        self.frame += 1;
        let page_count = count as u32;
        next.position = Position {
            salts: Salts([9; 8]),
            frame: FrameNo(self.frame),
            checksum: Checksum { s0: self.random.next() as u32, s1: 1 },
            page_count,
        };
        (next, written.into_iter().filter_map(|page| PageNo::new(page as u32 + 1)).collect())
    }

    fn open(&mut self, stored: Position) -> Result<(), ShadowError> {
        self.shadow = None;
        self.shadow = Some(Shadow::open(&self.directory, &stored)?);
        Ok(())
    }

    fn transaction(&mut self) {
        let (next, written) = self.next();
        let stored = self.now().position;
        let shadow = self.shadow.as_mut().unwrap();
        let entry = shadow.append(next.position, true, &written, &next).unwrap();
        match self.random.below(20) {
            0 => {
                shadow.cut().unwrap();
                self.count("refused");
            }
            1 => {
                self.open(stored).unwrap();
                self.count("died before the position was stored");
            }
            2 => {
                self.open(next.position).unwrap();
                self.versions.push(next);
                self.count("died after the position was stored");
            }
            _ => {
                shadow.accept(entry);
                self.versions.push(next);
                self.count("taken");
            }
        }
    }

    fn sync(&mut self) {
        self.shadow.as_ref().unwrap().sync().unwrap();
        self.durable = (Files::read(&self.directory), self.versions.len() - 1);
    }

    fn merge(&mut self) {
        self.sync();
        let shadow = self.shadow.as_mut().unwrap();
        if !shadow.can_merge() {
            return;
        }
        let unmarked = Files::read(&self.directory);
        shadow.journal.begin_merge().unwrap();
        let marked = Files::read(&self.directory);
        shadow.merge(DATABASE).unwrap();
        let merged = Files::read(&self.directory);
        let died_at = self.random.below(5);
        let files = match died_at {
            0 => Files { journal: torn(&unmarked.journal, &marked.journal, &mut self.random), ..unmarked },
            1 | 2 => {
                Files { image: torn(&marked.image, &merged.image, &mut self.random), journal: marked.journal.clone() }
            }
            _ => merged,
        };
        if died_at < 3 {
            let stored = self.now().position;
            self.shadow = None;
            files.write(&self.directory);
            self.open(stored).unwrap();
            self.is_merging |= files.journal == marked.journal;
            self.durable = (files, self.versions.len() - 1);
            self.count("merge torn");
        } else {
            self.versions.drain(..self.versions.len() - 1);
            self.is_merging = false;
            self.durable = (files, 0);
            self.count("merged");
        }
    }

    /// Everything since the last sync is on disk or is not, sector by sector.
    fn power_failure(&mut self) {
        let (durable, version) = self.durable.clone();
        let now = Files::read(&self.directory);
        self.shadow = None;
        let files = Files {
            image: torn(&durable.image, &now.image, &mut self.random),
            journal: torn(&durable.journal, &now.journal, &mut self.random),
        };
        files.write(&self.directory);
        let stored = version + self.random.below((self.versions.len() - version) as u64) as usize;
        let kept = match self.open(self.versions[stored].position) {
            Ok(()) => stored,
            Err(ShadowError::NotAtPosition { .. }) if stored > version => {
                files.write(&self.directory);
                self.open(self.versions[version].position).unwrap();
                version
            }
            Err(error) => panic!("stored {stored}, durable {version}: {error}"),
        };
        self.versions.truncate(kept + 1);
        self.durable = (Files::read(&self.directory), version.min(kept));
        self.count(if kept > version { "power failed, all found" } else { "power failed" });
    }

    fn check(&self) {
        let shadow = self.shadow.as_ref().unwrap();
        assert_eq!(shadow.position(), self.now().position);
        assert_same(shadow, self.now(), "the newest");
    }

    fn check_earlier(&mut self) {
        let shadow = self.shadow.as_ref().unwrap();
        for version in &self.versions {
            match shadow.earlier(&mut |position| Ok(*position == version.position)).unwrap() {
                Some(earlier) => {
                    assert_same(&earlier, version, "an earlier one");
                    let now = self.now();
                    for (page, bytes) in (1..).zip(&version.pages) {
                        // A page that was cut off and came back unwritten is in no tree now: its owner tells.
                        let is_as_now =
                            now.pages.get(page as usize - 1).is_some_and(|now| now.is_none() || now == bytes);
                        let is_named = earlier.changed_since.contains(&PageNo::new(page).unwrap());
                        assert!(is_as_now || is_named || bytes.is_none(), "page {page} changed since");
                    }
                }
                None => assert!(self.is_merging, "{:?} is gone", version.position),
            }
        }
    }
}

fn assert_same(found: &dyn PageSource, version: &Version, what: &str) {
    assert_eq!(found.page_count() as usize, version.pages.len());
    for (page, bytes) in (1..).filter_map(PageNo::new).zip(&version.pages) {
        let Some(bytes) = bytes else { continue };
        assert!(*found.page(page).unwrap() == **bytes, "page {page} of {what}, frame {}", version.position.frame.0);
    }
}

fn live(seed: u64) -> BTreeMap<&'static str, u64> {
    let mut scene = Scene::new(seed);
    for _ in 0..150 {
        match scene.random.below(100) {
            0..80 => scene.transaction(),
            80..85 => scene.sync(),
            85..92 => scene.merge(),
            92..96 => scene.power_failure(),
            _ => {
                let stored = scene.now().position;
                scene.open(stored).unwrap();
            }
        }
        scene.check();
        if scene.random.chance(10) {
            scene.check_earlier();
        }
    }
    scene.counts
}

#[test]
fn every_version_is_found_after_any_death() {
    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(1..=40, |seed| seed..=seed);
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in seeds {
        match catch_unwind(|| live(seed)) {
            Ok(more) => more.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count),
            Err(panic) => {
                println!("SEED={seed}");
                resume_unwind(panic);
            }
        }
    }
    println!("{counts:?}");
}

/// A daemon is replaced by a newer one with whole pages in the journal of the older.
#[test]
fn a_journal_of_the_first_format_is_read_and_goes_on() {
    use super::journal::first_format;
    let mut scene = Scene::new(7);
    let (next, written) = scene.next();
    let stored = next.position;
    scene.shadow = None;
    let pages: Vec<(PageNo, Vec<u8>)> =
        written.iter().map(|page| (*page, next.page(*page).unwrap().into_owned())).collect();
    first_format::write(
        &scene.directory.join(JOURNAL_NAME),
        scene.page_bytes as u32,
        scene.now().position,
        stored,
        &pages,
    );
    scene.versions.push(next);
    scene.open(stored).unwrap();
    scene.check();
    scene.check_earlier();
    scene.sync();
    for _ in 0..60 {
        scene.transaction();
        scene.check();
    }
    scene.check_earlier();
    scene.merge();
    scene.check();
}

#[test]
fn a_journal_of_a_later_format_is_refused() {
    let scene = Scene::new(7);
    let path = scene.directory.join(JOURNAL_NAME);
    super::journal::first_format::set_version(&path, 3);
    let error = Shadow::open(&scene.directory, &scene.now().position).unwrap_err();
    assert!(matches!(error, ShadowError::Version { found: 3, .. }), "{error}");
}
