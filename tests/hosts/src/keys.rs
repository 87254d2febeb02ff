//! Keys of a test: to come in over SSH, and to open encrypted repositories.

use std::fs;

use system_tests::tool::programs;

use crate::Lab;

/// A key in two parts.
#[derive(Debug, Clone)]
pub struct Pair {
    /// What only its holder has.
    pub private: String,
    /// What everybody may know: a line of authorized_keys, or a recipient.
    pub public: String,
}

/// Makes a key for ssh; no other may have this name.
pub fn ssh(lab: &Lab, name: &str) -> Pair {
    let path = lab.scratch.path(name);
    lab.run(&format!(
        "ssh-keygen -q -t ed25519 -N '' -C {name} -f {}",
        path.display()
    ));
    Pair {
        public: fs::read_to_string(path.with_extension("pub")).unwrap(),
        private: fs::read_to_string(path).unwrap(),
    }
}

/// Makes a key for encrypted repositories.
pub fn age(lab: &Lab, name: &str) -> Pair {
    let path = lab.scratch.path(name);
    let programs = programs();
    let made = lab.run(&format!(
        "{}/pgkeep-init --generate-key {}",
        programs.display(),
        path.display()
    ));
    let recipient = made.stdout.split_whitespace().find(|word| word.starts_with("age1"));
    Pair {
        public: recipient.unwrap().to_owned(),
        private: fs::read_to_string(path).unwrap(),
    }
}
