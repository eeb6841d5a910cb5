//! The layer rule, read from the sources: a module imports only what the table below allows, the lowest layers do no I/O, `unsafe` stands
//! in one file, and nothing is left to be done. Whoever changes the table changes the design, and says so in `docs/design.md`.

mod reader;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use reader::{Reader, tokens};

/// What one folder of `src/` may use.
struct Layer {
    name: &'static str,
    layers: &'static [&'static str],
    crates: &'static [&'static str],
    /// No I/O, no clock, no threads, no environment.
    pure: bool,
}

/// Lowest first. A crate that serves one layer is that layer's alone: who needs it elsewhere goes through the layer.
const LAYERS: [Layer; 9] = [
    Layer { name: "fault", layers: &[], crates: &["rustix"], pure: false },
    Layer { name: "format", layers: &[], crates: &[], pure: true },
    Layer { name: "schema", layers: &["format"], crates: &["rusqlite", "sqlparser"], pure: true },
    Layer { name: "change", layers: &["format", "schema"], crates: &[], pure: true },
    Layer {
        name: "capture",
        layers: &["fault", "format", "schema", "change"],
        crates: &["memmap2", "notify", "rusqlite", "rustix"],
        pure: false,
    },
    Layer {
        name: "log",
        layers: &["fault", "format", "change"],
        crates: &["async_nats", "blake3", "futures_util", "minicbor", "tokio", "zstd"],
        pure: false,
    },
    Layer {
        name: "apply",
        layers: &["fault", "format", "schema", "change", "log"],
        crates: &["blake3", "rusqlite"],
        pure: false,
    },
    Layer {
        name: "node",
        layers: &["capture", "log", "apply"],
        crates: &["futures_util", "rusqlite", "rustix", "serde_json", "tokio", "toml"],
        pure: false,
    },
    Layer {
        name: "cli",
        layers: &["fault", "format", "schema", "change", "capture", "log", "apply", "node"],
        crates: &[
            "base64",
            "clap",
            "futures_util",
            "indicatif",
            "rusqlite",
            "rustix",
            "serde_json",
            "tokio",
            "toml",
            "tracing_subscriber",
        ],
        pure: false,
    },
];

/// Crates that carry no meaning of their own and may be used anywhere.
const COMMON_CRATES: [&str; 4] = ["bytes", "serde", "thiserror", "tracing"];

/// Modules of `std` that reach outside of the process or the call.
const IMPURE_STD: [&str; 6] = ["env", "fs", "net", "process", "thread", "time"];

/// The one file that may use `unsafe`.
const UNSAFE_FILE: &str = "src/capture/map.rs";

/// The program may use the command line and nothing below it.
const MAIN_MAY_USE: &str = "cli";

#[derive(Debug, PartialEq, Eq)]
struct Violation {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Everything in one source file that the rules forbid. `file` is its path from the package's folder, with `/`.
fn violations(file: &str, source: &str, dependencies: &BTreeSet<String>) -> Vec<Violation> {
    let reader = Reader { tokens: tokens(source) };
    let mut found = Vec::new();
    let mut complain = |line: usize, what: String| found.push(Violation { file: file.to_owned(), line, what });

    for index in 0..reader.tokens.len() {
        let word = reader.text(index);
        if word == "unsafe" && file != UNSAFE_FILE {
            complain(reader.line(index), format!("`unsafe` stands in {UNSAFE_FILE} alone"));
        }
        if matches!(word, "todo" | "unimplemented") && reader.text(index + 1) == "!" {
            complain(reader.line(index), format!("`{word}!` is not finished"));
        }
    }

    let parts: Vec<&str> = file.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
    let layer = LAYERS.iter().find(|layer| parts.len() > 1 && parts.first() == Some(&layer.name));
    let is_root = matches!(parts.as_slice(), ["lib" | "main"]);
    if layer.is_none() && !is_root {
        complain(1, "the file belongs to no layer".to_owned());
        return found;
    }
    // How many modules the file's own module lies below the crate's root.
    let depth = if is_root { 0 } else { parts.iter().filter(|part| **part != "mod").count() };

    for import in reader.imports() {
        let path = import.segments.join("::");
        let names: Vec<&str> = import.segments.iter().map(String::as_str).collect();
        let supers = names.iter().take_while(|name| **name == "super").count();
        let (from_root, rest) = match names.as_slice() {
            ["crate" | "woodchuck", rest @ ..] => (true, rest),
            [_, ..] if supers > 0 => (supers == depth + import.inline_modules, names.get(supers..).unwrap_or(&[])),
            all => (false, all),
        };
        let target = rest.first().copied().unwrap_or("");
        match layer {
            Some(layer) if from_root => {
                if target == "*" {
                    complain(import.line, format!("`{path}` imports every layer"));
                } else if LAYERS.iter().any(|other| other.name == target)
                    && target != layer.name
                    && !layer.layers.contains(&target)
                {
                    complain(import.line, format!("layer `{}` may not use layer `{target}` (`{path}`)", layer.name));
                }
            }
            Some(layer) if supers == 0 => {
                let is_common = COMMON_CRATES.contains(&target);
                if dependencies.contains(target) && !is_common && !layer.crates.contains(&target) {
                    complain(import.line, format!("layer `{}` may not use crate `{target}` (`{path}`)", layer.name));
                }
                let reaches_out = rest.get(1).is_some_and(|module| IMPURE_STD.contains(module));
                if layer.pure && matches!(target, "std" | "core") && reaches_out {
                    complain(import.line, format!("layer `{}` does no I/O and asks no clock (`{path}`)", layer.name));
                }
            }
            None if from_root && file.ends_with("main.rs") && target != MAIN_MAY_USE => {
                complain(import.line, format!("the program may use `{MAIN_MAY_USE}` alone (`{path}`)"));
            }
            _ => {}
        }
    }
    found
}

/// The crates that the package depends on, as they are written in paths.
fn dependencies() -> BTreeSet<String> {
    let manifest = fs::read_to_string(package().join("Cargo.toml")).expect("Cargo.toml can be read");
    let manifest: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
    let listed = manifest.get("dependencies").and_then(toml::Value::as_table).expect("Cargo.toml lists dependencies");
    listed.keys().map(|name| name.replace('-', "_")).collect()
}

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All source files below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder can be listed") {
        let path = entry.expect("the entry can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_source_file_keeps_to_its_layer() {
    let (mut files, dependencies) = (Vec::new(), dependencies());
    sources(&package().join("src"), &mut files);
    files.sort();
    assert!(files.len() > LAYERS.len(), "too few sources were found to believe that all were read");
    let mut found = Vec::new();
    for path in files {
        let name =
            path.strip_prefix(package()).expect("sources lie in the package").to_string_lossy().replace('\\', "/");
        found.extend(violations(&name, &fs::read_to_string(&path).expect("a source is text"), &dependencies));
    }
    let report: Vec<String> = found.iter().map(Violation::to_string).collect();
    assert!(report.is_empty(), "the layer rule is broken:\n{}", report.join("\n"));
}

#[test]
fn a_layer_uses_only_lower_layers() {
    for (index, layer) in LAYERS.iter().enumerate() {
        for used in layer.layers {
            let position = LAYERS.iter().position(|other| other.name == *used);
            assert!(position.is_some_and(|position| position < index), "{} may not list {used}", layer.name);
        }
    }
}

/// What the checker says of one file, as `line: what`.
fn complaints(file: &str, source: &str) -> Vec<String> {
    let dependencies = ["tokio", "rusqlite", "tracing", "async_nats", "clap"].map(str::to_owned).into();
    violations(file, source, &dependencies).iter().map(|found| format!("{}: {}", found.line, found.what)).collect()
}

#[test]
fn imports_of_higher_layers_are_found_however_they_are_written() {
    for source in [
        "\nuse crate::apply::Fold;",
        "\nuse crate::{format::Value, apply::Fold};",
        "use crate::{\n    apply::{Fold},\n};",
        "\nfn f() -> crate::apply::Fold { g() }",
        "\npub use super::super::apply::Fold;",
        "mod inner {\n    use super::super::super::apply::Fold;\n}",
        "\nuse crate::apply as other;",
    ] {
        let said = complaints("src/log/message.rs", source);
        assert_eq!(said.len(), 1, "{source}: {said:?}");
        assert!(
            said.iter().all(|line| line.starts_with("2: layer `log` may not use layer `apply`")),
            "{source}: {said:?}"
        );
    }
    assert_eq!(complaints("src/log/message.rs", "use crate::*;"), ["1: `crate::*` imports every layer"]);
    assert_eq!(complaints("src/log/mod.rs", "use super::apply::Fold;").len(), 1);
}

#[test]
fn what_the_table_allows_is_no_violation() {
    let source = "use crate::{change::Op, format::{self, Value}};\nuse super::envelope::apply;\nuse tracing::info;\nuse std::time::Instant;\n\
                  fn f<'a>(x: &'a str) -> Vec<u8> { tokio::spawn(x); std::fs::read(x); self::apply::<u8>(x) }";
    assert_eq!(complaints("src/log/message.rs", source), [""; 0]);
    assert_eq!(
        complaints("src/main.rs", "use woodchuck::cli;\nfn main() { std::process::exit(cli::main()) }"),
        [""; 0]
    );
}

#[test]
fn crates_of_other_layers_are_found() {
    assert_eq!(complaints("src/change/differ.rs", "use rusqlite::Connection;").len(), 1);
    assert_eq!(complaints("src/change/differ.rs", "fn f() { ::rusqlite::version(); }").len(), 1);
    assert_eq!(complaints("src/capture/follower.rs", "use tokio;").len(), 1);
    assert_eq!(complaints("src/capture/follower.rs", "#[derive(clap::Args)]\nstruct A;").len(), 1);
    assert_eq!(complaints("src/main.rs", "use woodchuck::node;").len(), 1);
}

#[test]
fn the_lowest_layers_do_no_io() {
    let said = complaints(
        "src/format/wal.rs",
        "use std::{\n    fmt,\n    fs::File,\n};\nfn f() { std::time::Instant::now(); }",
    );
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said.iter().any(|line| line.starts_with("3: ")) && said.iter().any(|line| line.starts_with("5: ")),
        "{said:?}"
    );
}

#[test]
fn unsafe_and_unfinished_code_is_found_in_tests_too() {
    let source = "#[cfg(test)]\nmod tests {\n    use crate::node::Node;\n    fn f() { unsafe { g() }; todo!() }\n}\nuse crate::cli::Args;";
    let said = complaints("src/format/wal.rs", source);
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said.iter().filter(|line| line.starts_with("4: ")).count() == 2, "{said:?}");
    assert!(said.iter().any(|line| line.starts_with("6: ")), "{said:?}");
    assert_eq!(complaints(UNSAFE_FILE, "fn f() { unsafe { g() } }"), [""; 0]);
}

#[test]
fn comments_and_literals_are_not_code() {
    let source = r####"
        // unsafe crate::node::X
        /* crate::node /* todo!() */ unsafe */
        const A: &str = "crate::node::X \" unsafe";
        const B: &str = r#"crate::cli::X " todo!()"#;
        const C: &[u8] = b"unsafe"; const D: char = '"'; const E: char = '\''; const F: u8 = b'\\';
        fn f<'a>() {}
    "####;
    assert_eq!(complaints("src/format/wal.rs", source), [""; 0]);
}

#[test]
fn a_file_outside_of_the_layers_is_found() {
    assert_eq!(complaints("src/helper.rs", ""), ["1: the file belongs to no layer"]);
    assert_eq!(complaints("src/common/mod.rs", ""), ["1: the file belongs to no layer"]);
}
