//! The lifecycle rules that pgkeep-init prints are taken by a store that speaks S3's protocol.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use system_tests::{Bare, Emulator, Scratch};

#[test]
fn the_rules_that_are_printed_can_be_put_on_a_bucket() {
    let scratch = Scratch::new("lifecycle");
    let Some(moto) = Emulator::need_moto(&scratch.path("")) else {
        return;
    };
    moto.request("PUT", "/backups", "", "");
    let bare = Bare::new("lifecycle");
    let local = format!("file://{}", bare.repository.display());
    let text = bare.text.replace(&local, "s3://backups/postgres");
    bare.configure(&format!(
        "{text}endpoint = \"{}\"\nretention = {{ full = 4, monthly = 12, wal = \"14d\" }}\n",
        moto.endpoint()
    ));
    let ran = bare.tool("init").arg("--lifecycle").run().expect_code(0);
    ran.clone().expect_said("needed at once for 30 days");
    let printed: Value = serde_json::from_str(&ran.stdout).unwrap();

    let script = format!(
        "s3.put_bucket_lifecycle_configuration(Bucket='backups', LifecycleConfiguration=json.loads(r\"\"\"{printed}\"\"\"))\n\
         print(json.dumps(s3.get_bucket_lifecycle_configuration(Bucket='backups')['Rules']))"
    );
    let stored: Value = serde_json::from_str(&moto.boto3(&script)).unwrap();
    assert_eq!(stored, printed["Rules"]);
    let transitions = stored[2]["Transitions"].as_array().unwrap();
    assert_eq!(transitions.len(), 2, "{stored}");
}
