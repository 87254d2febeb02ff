//! Servers that repositories can lie on, for the benchmark: `elsewhere DIRECTORY` starts an S3 server that speaks TLS, keeps its objects
//! below the directory, and an SFTP server. Prints what clients need, as assignments for a shell, and runs until its standard input ends.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use system_tests::s3::{ACCESS_KEY, Certificate, SECRET_KEY};
use system_tests::{S3, Scratch, Sshd};

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: elsewhere DIRECTORY");
        return ExitCode::from(2);
    };
    let scratch = Scratch::new("elsewhere");
    let certificate = Certificate::make(&directory.join("tls"));
    let s3 = S3::start_tls(&directory.join("s3"), "backups", &certificate);
    let credentials = directory.join("credentials");
    S3::credentials(&credentials);
    println!("s3_endpoint='{}'", s3.endpoint());
    println!("s3_authority='{}'", certificate.authority.display());
    println!("s3_credentials='{}'", credentials.display());
    println!("s3_key='{ACCESS_KEY}' s3_secret='{SECRET_KEY}'");
    let sshd = Sshd::need(&scratch);
    if let Some(sshd) = &sshd {
        println!("sftp_url='{}' sftp_key='{}'", sshd.url("bench"), sshd.key.display());
        println!("sftp_program='{}'", scratch.path("bin/ssh").display());
        println!("sftp_objects='{}'", sshd.chroot.join("backups/bench").display());
    }
    println!("elsewhere=ready");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}
