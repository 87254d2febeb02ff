//! Ansible and the project's collection: where its programs are, and how they find it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::output::project;
use crate::stand;
use crate::tool::{PATH, Tool};

/// Where `tests/stand/install.sh hosts` puts Ansible's programs; none if it is not there.
pub fn programs() -> Option<PathBuf> {
    let entries = fs::read_dir(stand::directory()).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("ansible-"))
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("ansible-playbook").is_file())
        .collect();
    found.sort();
    found.pop()
}

/// [`programs`], or says that the calling test is skipped.
pub fn need() -> Option<PathBuf> {
    let found = programs();
    if found.is_none() {
        stand::skipped("no Ansible; tests/stand/install.sh hosts fetches it");
    }
    found
}

/// The collection's directory.
pub fn collection() -> PathBuf {
    fs::canonicalize(project("ansible")).unwrap()
}

/// Gives a program what Ansible's programs want: each other, a place for what they keep, and the project's collection.
pub fn set_up(tool: Tool, programs: &Path, place: &Path) -> Tool {
    let namespace = place.join("collections/ansible_collections/pgkeep");
    let (home, link) = (place.join("home"), namespace.join("pgkeep"));
    fs::create_dir_all(&namespace).unwrap();
    fs::create_dir_all(&home).unwrap();
    if !link.exists() {
        std::os::unix::fs::symlink(collection(), &link).unwrap();
    }
    tool.env("PATH", format!("{}:{PATH}", programs.display()))
        .env("HOME", &home)
        .env("ANSIBLE_HOME", &home)
        .env("ANSIBLE_COLLECTIONS_PATH", place.join("collections"))
        .env("ANSIBLE_NOCOLOR", "True")
        // Nothing is left beside the sources.
        .env("PYTHONDONTWRITEBYTECODE", "1")
}
