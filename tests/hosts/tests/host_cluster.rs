//! x
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]
use host_tests::{Lab, Members};

#[test]
fn a_cluster() {
    let Some(lab) = Lab::need("cluster", &["trixie"]) else {
        return;
    };
    let members = Members::new(&lab);
    let took = members.time(|| {
        members.switch_over();
    });
    println!("{took:?} {:#}", members.cluster());
}
