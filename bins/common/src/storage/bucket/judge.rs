//! What an answer of an object store means: a kind, a sentence, and what to do.

use std::error::Error as StdError;

use object_store::client::{HttpError, HttpErrorKind};

use super::wire::{Answer, Stalled};
use crate::error::{Error, Kind};

/// Makes an error of what the library returned for `what` ("store s3://bucket/key").
///
/// `NotFound` and `AlreadyExists` come from an answer that says so, never from a failure; a missing bucket is neither.
pub(super) fn judge(error: object_store::Error, what: impl Into<String>) -> Error {
    let what = what.into();
    if let Some(answer) = cause::<Answer>(&error) {
        return answered(answer, what);
    }
    if let Some(stalled) = cause::<Stalled>(&error) {
        return Error::new(Kind::Transient, what)
            .because(stalled.to_string())
            .hint("is the network slow, or the store's service in trouble?");
    }
    if let Some(failed) = cause::<HttpError>(&error) {
        return unanswered(failed, what);
    }
    Error::new(Kind::Failed, what).because(error)
}

/// Whether the store surely has no such object: it answered, and did not mean the bucket.
pub(super) fn is_absent(error: &object_store::Error) -> Option<bool> {
    let Some(answer) = cause::<Answer>(error) else {
        // In a batch the library reads the answer for each object itself.
        return matches!(error, object_store::Error::NotFound { .. }).then_some(true);
    };
    // The answer to HEAD has no body, so what is missing may be the bucket.
    (answer.status == 404).then(|| !answer.code.is_empty() && !is_bucket(&answer.code))
}

/// Whether the store, or the library, which looks at the answer, says that the range lies behind the object's end.
pub(super) fn is_beyond_the_end(error: &object_store::Error) -> Verdict {
    match cause::<Answer>(error) {
        Some(answer) if answer.status == 416 => Verdict::Yes,
        Some(_) => Verdict::No,
        None if cause::<HttpError>(error).is_some() => Verdict::No,
        None => Verdict::Look,
    }
}

/// An answer that may need a second question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is so.
    Yes,
    /// It is not so.
    No,
    /// The error does not tell.
    Look,
}

/// Whether the store does not know a header that it was sent.
pub(super) fn is_not_implemented(error: &object_store::Error) -> bool {
    cause::<Answer>(error).is_some_and(|answer| answer.status == 501)
}

fn is_bucket(code: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"].contains(&code)
}

/// The first error of this type among an error and its causes.
fn cause<'e, T: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn answered(answer: &Answer, what: String) -> Error {
    let (kind, hint) = meaning(answer);
    let error = Error::new(kind, what).because(answer.to_string());
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// The kind of an answer, and what to do about it. S3's codes: Amazon S3 API Reference, "Error responses".
fn meaning(answer: &Answer) -> (Kind, Option<String>) {
    let hint = |text: &str| Some(text.to_owned());
    match (answer.status, answer.code.as_str()) {
        (_, "RequestTimeTooSkewed") => (
            Kind::Failed,
            hint("this host's clock and the store's are too far apart: timedatectl shows whether it is synchronised"),
        ),
        (_, "SignatureDoesNotMatch") => (
            Kind::Failed,
            hint("the secret key is wrong, or the region is: look at credentials_file and region"),
        ),
        (_, "InvalidAccessKeyId" | "NotSignedUp") => (
            Kind::Failed,
            hint("the store does not know this access key: look at credentials_file and endpoint"),
        ),
        (_, "ExpiredToken" | "TokenRefreshRequired") => {
            (Kind::Transient, hint("the session's credentials have expired"))
        }
        (_, "InvalidObjectState") => (
            Kind::Failed,
            hint(
                "the object lies in an archive storage class: thaw it first (aws s3api restore-object), \
                 wait until that is done, and try again",
            ),
        ),
        (_, "QuotaExceeded" | "XMinioStorageFull" | "EntityTooLarge") | (507, _) => {
            (Kind::Transient, hint("the store is full: make room or raise its quota"))
        }
        (_, code) if is_bucket(code) => (
            Kind::Failed,
            hint("create the bucket first, or correct url and endpoint"),
        ),
        (_, "ConditionalRequestConflict" | "OperationAborted") => (Kind::Transient, None),
        (301 | 307 | 308, _) | (_, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => (
            Kind::Failed,
            Some(match &answer.region {
                Some(region) => format!("the bucket is in region {region}: set region = \"{region}\""),
                None => {
                    "the bucket is in another region: set region, and endpoint where the provider has one per region"
                        .to_owned()
                }
            }),
        ),
        (404, "") => (
            Kind::Failed,
            hint("is there such a bucket at this endpoint? url and endpoint say where it is looked for"),
        ),
        (404, _) => (Kind::NotFound, None),
        (409 | 412, _) => (Kind::AlreadyExists, None),
        (401 | 403, _) => (
            Kind::Failed,
            hint(
                "the account may not do this: compare its policy with the one in docs/s3.md (reading needs ListBucket too, else a missing object looks forbidden)",
            ),
        ),
        (429, _) | (_, "SlowDown" | "ServerBusy") => (
            Kind::Transient,
            hint("the store asks for fewer requests at a time: lower jobs or bandwidth"),
        ),
        (408, _) => (Kind::Transient, None),
        (501, _) => (Kind::Failed, hint("this store cannot do that")),
        (500.., _) => (
            Kind::Transient,
            hint("the store itself is in trouble: its log or its provider's status page may say more"),
        ),
        _ => (Kind::Failed, None),
    }
}

/// The sentence for a request that got no answer.
fn unanswered(failed: &HttpError, what: String) -> Error {
    let root = root_cause(failed);
    let error = |kind| Error::new(kind, what.clone()).because(root.clone());
    if root.contains("certificate") || root.contains("UnknownIssuer") {
        return error(Kind::Failed).hint(
            "the server's certificate is not trusted: set ca_file to its authority's certificate, and check endpoint and clock",
        );
    }
    match failed.kind() {
        HttpErrorKind::Connect if root.contains("dns") || root.contains("lookup") => {
            error(Kind::Transient).hint("the endpoint's name cannot be resolved: is it right, and is the network up?")
        }
        HttpErrorKind::Connect => {
            error(Kind::Transient).hint("is the endpoint right, is its service up, does a firewall stand between?")
        }
        _ => error(Kind::Transient),
    }
}

/// The innermost cause, which says what happened; the layers above it only say that something did.
fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    let text = last.to_string();
    // hyper's own words for a connection that ended.
    if text.contains("connection closed before message completed") {
        "the connection was closed in the middle".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn from(status: u16, code: &str) -> object_store::Error {
        let answer = Answer {
            status,
            code: code.to_owned(),
            message: "as it is".to_owned(),
            region: None,
        };
        object_store::Error::Generic {
            store: "S3",
            source: Box::new(HttpError::new(HttpErrorKind::Unknown, answer)),
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let cases = [
            (500, "InternalError", Kind::Transient),
            (502, "", Kind::Transient),
            (503, "SlowDown", Kind::Transient),
            (504, "", Kind::Transient),
            (501, "NotImplemented", Kind::Failed),
            (429, "TooManyRequests", Kind::Transient),
            (408, "RequestTimeout", Kind::Transient),
            (507, "XMinioStorageFull", Kind::Transient),
            (400, "RequestTimeTooSkewed", Kind::Failed),
            (403, "RequestTimeTooSkewed", Kind::Failed),
            (403, "SignatureDoesNotMatch", Kind::Failed),
            (403, "InvalidAccessKeyId", Kind::Failed),
            (403, "NotSignedUp", Kind::Failed),
            (503, "SlowDown", Kind::Transient),
            (403, "AccessDenied", Kind::Failed),
            (403, "InvalidObjectState", Kind::Failed),
            (401, "", Kind::Failed),
            (404, "NoSuchBucket", Kind::Failed),
            (404, "", Kind::Failed),
            (404, "NoSuchKey", Kind::NotFound),
            (404, "BlobNotFound", Kind::NotFound),
            (409, "ConditionalRequestConflict", Kind::Transient),
            (409, "BlobAlreadyExists", Kind::AlreadyExists),
            (412, "PreconditionFailed", Kind::AlreadyExists),
            (301, "PermanentRedirect", Kind::Failed),
            (400, "InvalidArgument", Kind::Failed),
        ];
        for (status, code, kind) in cases {
            let error = judge(from(status, code), "store x");
            assert_eq!(error.kind(), kind, "{status} {code}");
            assert!(
                crate::error::chain(&error).starts_with("store x: the store answers "),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_missing_bucket_is_no_missing_object() {
        assert_eq!(is_absent(&from(404, "NoSuchKey")), Some(true));
        assert_eq!(is_absent(&from(404, "NoSuchBucket")), Some(false));
        assert_eq!(is_absent(&from(404, "")), Some(false), "HEAD cannot tell");
        assert_eq!(is_absent(&from(403, "AccessDenied")), None);
    }

    #[test]
    fn a_wrong_region_is_named() {
        let answer = Answer {
            status: 301,
            code: "PermanentRedirect".to_owned(),
            message: String::new(),
            region: Some("eu-west-1".to_owned()),
        };
        assert!(meaning(&answer).1.unwrap().contains("eu-west-1"));
    }
}
