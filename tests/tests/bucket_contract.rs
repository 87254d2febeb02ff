//! The bucket store keeps the contract of all stores, and the wire's faults come to nothing.
#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::retry::Policy;
use common::storage::bucket::{BucketSettings, BucketStore, Classes, Service};
use common::storage::retrying::RetryingStore;
use common::storage::{Exclusive, Store, contract};
use common::time::UtcTime;
use system_tests::{Emulator, S3, Scratch, emulator};

fn settings(endpoint: String, prefix: &str, credentials: &Path) -> BucketSettings {
    BucketSettings {
        service: Service::S3 {
            region: None,
            virtual_hosted: None,
            encryption: None,
            lock: None,
        },
        bucket: "backups".into(),
        prefix: prefix.into(),
        endpoint: Some(endpoint),
        ca_file: None,
        credentials_file: Some(credentials.to_owned()),
        environment: Vec::new(),
        classes: Classes::default(),
    }
}

/// Runs the suite on stores below prefixes of their own, as they are and with patience.
fn keeps_the_contract(mut settings: BucketSettings) {
    let number = Cell::new(0);
    let settings = |prefix: String| {
        settings.prefix = prefix;
        settings.clone()
    };
    let settings = RefCell::new(settings);
    for retrying in [false, true] {
        contract::check(&|| {
            number.set(number.get() + 1);
            let prefix = format!("store-{}/of many", number.get());
            let policy = Policy::patient(Duration::from_secs(20));
            let settings = (*settings.borrow_mut())(prefix);
            let store = BucketStore::new(&settings, policy, UtcTime::now()).unwrap();
            if retrying {
                Box::new(RetryingStore::new(Arc::new(store), policy))
            } else {
                Box::new(store)
            }
        });
    }
}

#[test]
fn an_s3_bucket_keeps_the_contract_of_all_stores() {
    let scratch = Scratch::new("s3_contract");
    let Some(moto) = Emulator::need_moto(&scratch.path("")) else {
        return;
    };
    assert_eq!(moto.request("PUT", "/backups", "", "").0, 200, "the bucket is made");
    let credentials = scratch.path("credentials");
    S3::credentials(&credentials);
    keeps_the_contract(settings(moto.endpoint(), "", &credentials));
}

#[test]
fn an_azure_container_keeps_the_contract_of_all_stores() {
    let scratch = Scratch::new("azure_contract");
    let Some(azurite) = Emulator::need_azurite(&scratch.path("")) else {
        return;
    };
    let credentials = scratch.path("credentials");
    system_tests::account::write(
        &credentials,
        format!("azure_storage_account_key = {}\n", emulator::AZURITE_KEY),
        0o600,
    );
    let mut settings = settings(
        format!("{}/{}", azurite.endpoint(), emulator::AZURITE_ACCOUNT),
        "",
        &credentials,
    );
    settings.service = Service::Azure {
        account: emulator::AZURITE_ACCOUNT.into(),
    };
    azurite.make_container("backups");
    keeps_the_contract(settings);
}

#[test]
fn what_the_store_honours_is_found_out_and_relied_on() {
    let scratch = Scratch::new("s3_exclusive");
    let s3 = S3::start(&scratch.path("s3"), "backups");
    let credentials = scratch.path("credentials");
    S3::credentials(&credentials);
    let store = BucketStore::new(
        &settings(s3.endpoint(), "", &credentials),
        Policy::once(),
        UtcTime::now(),
    )
    .unwrap();
    assert_eq!(store.exclusive(), Exclusive::IfNoneMatch);
    assert!(
        store.children(None).unwrap().is_empty(),
        "the trial leaves nothing behind"
    );
    s3.forget();
    let key = common::storage::Key::parse("main/once").unwrap();
    store.put_new(&key, b"x").unwrap();
    assert_eq!(
        s3.log().len(),
        1,
        "one request, since the store refuses by itself: {:?}",
        s3.log()
    );
}
