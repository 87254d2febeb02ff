//! What has to be so on a host before a document's command can be typed.

pub mod by_hand;
pub mod daily;
pub mod disasters;
pub mod first;
pub mod guide;
pub mod runbooks;

/// The one document that shall be typed, where somebody works on it.
pub fn chosen() -> Option<String> {
    std::env::var("PGKEEP_DOCUMENT").ok()
}

/// Two repositories, as most documents have them.
pub const TWO: &str = r#"
[cluster.main]
data_directory = "/var/lib/postgresql/15/main"
host = "/var/run/postgresql"
port = 5432
user = "postgres"
extra_paths = ["/etc/postgresql/15/main"]

[repository.local]
url = "file:///var/backups/pgkeep"
encryption = { recipients = ["age1..."], identity_file = "/etc/pgkeep/identity.txt" }
retention = { full = 4, incremental = "7d", wal = "14d" }

[repository.offsite]
url = "file:///mnt/offsite"
encryption = { recipients = ["age1..."], identity_file = "/etc/pgkeep/identity.txt" }
required = false
"#;

use host_tests::Reader;
use host_tests::typed::blocks;

/// Two repositories of which one was filled from the other, so that both hold the same bytes.
pub fn mirrored(reader: &mut Reader) {
    let one = TWO.split("[repository.offsite]").next().unwrap();
    reader.works(one);
    reader.configures(TWO);
    reader.host.run("pgkeep-init && pgkeep-sync");
}

/// Damages a bundle of the newest backup of the local repository.
pub fn damages(reader: &Reader) {
    let label = reader.label("backups");
    reader.host.run(&format!(
        "file=$(find /var/backups/pgkeep/main/backup/{label}/data -type f | sort | head -n 1)
        printf damage | dd of=\"$file\" bs=1 seek=200 conv=notrunc status=none"
    ));
}

/// Somebody who serves metrics as node_exporter does.
pub fn metrics(reader: &Reader) {
    let server = "import http.server, glob
class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        for name in glob.glob('/var/lib/prometheus/node-exporter/*.prom'):
            self.wfile.write(open(name, 'rb').read())
        self.wfile.write(b'node_textfile_scrape_error 0\\n')
http.server.HTTPServer(('127.0.0.1', 9100), Metrics).serve_forever()
";
    reader.host.write("/root/metrics.py", server);
    reader.host.run(
        "systemctl is-active -q metrics || systemd-run -q --unit metrics python3 /root/metrics.py
              timeout 60 bash -c 'until curl -sf http://127.0.0.1:9100/ >/dev/null; do :; done'",
    );
}

/// A repository on another host, as the guide says; here that host is this one.
pub fn keeps_for_others(reader: &Reader) {
    let done = reader.host.holds("getent passwd pgkeep");
    if done {
        return;
    }
    for block in blocks("docs/guide.md") {
        if ["Another host over SFTP", "The host that keeps the repository"].contains(&block.section.as_str()) {
            for command in &block.commands {
                if command.contains("KEYS.pub") {
                    reader.host.run("cp /etc/pgkeep/id_ed25519.pub /root/KEYS.pub");
                }
                reader.command(&block, command);
            }
        }
    }
    lets_in(reader);
}

/// sshd is configured as the guide says.
pub fn lets_in(reader: &Reader) {
    let lines = host_tests::typed::shown("docs/guide.md", "Another host over SFTP", "")[0].replace(
        "Match User pgkeep\n",
        "Match User pgkeep\n    AuthorizedKeysFile /etc/ssh/authorized_keys/%u\n",
    );
    reader.host.write("/root/sftp.conf", &lines);
    reader.host.run(
        "sed -i '/^Subsystem/d' /etc/ssh/sshd_config; cat /root/sftp.conf >> /etc/ssh/sshd_config; sshd -t; systemctl restart ssh",
    );
}
