//! What S3 can do and the library cannot: find uploads that nobody will complete, and look behind the newest version of an
//! object. Requests of our own, signed with the library's keys.

use std::sync::Arc;

use base64::Engine;
use http::Method;
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpService};

use super::wire::Wire;
use crate::digest::crc32c;
use crate::time::UtcTime;

/// No page of a listing has more; a store that sends more is not believed.
const PAGE_BYTES: usize = 16 << 20;

/// A bucket of S3, asked directly.
pub(super) struct Bucket {
    pub client: Arc<AmazonS3>,
    pub wire: Wire,
    /// The bucket's URL, without a slash at its end.
    pub url: String,
    pub region: String,
}

/// An upload in parts that was begun and not completed.
#[derive(Debug, PartialEq)]
pub(super) struct Begun {
    pub key: String,
    pub id: String,
    pub at: UtcTime,
}

/// One version of an object, or the mark that it was deleted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Version {
    pub key: String,
    pub id: String,
    pub size: u64,
    pub modified: UtcTime,
    pub is_marker: bool,
}

/// A part of a listing, and where the next begins.
#[derive(Debug, PartialEq)]
pub(super) struct Page<T> {
    pub found: Vec<T>,
    /// What the keys below a delimiter begin with.
    pub prefixes: Vec<String>,
    /// The markers of the next page: key, and upload or version.
    pub next: Option<(String, String)>,
}

impl Bucket {
    /// Uploads that are not completed, below a prefix, from a place on.
    pub async fn uploads(&self, prefix: &str, from: Option<&(String, String)>) -> object_store::Result<Page<Begun>> {
        let mut query = vec![("uploads", ""), ("prefix", prefix)];
        if let Some((key, id)) = from {
            query.extend([("key-marker", key.as_str()), ("upload-id-marker", id.as_str())]);
        }
        let text = self.ask(Method::GET, None, &query).await?;
        read_uploads(&text).ok_or_else(|| odd(&text))
    }

    /// Versions of what begins with `prefix`, newest first for each key.
    pub async fn versions(
        &self,
        prefix: &str,
        delimiter: &str,
        from: Option<&(String, String)>,
    ) -> object_store::Result<Page<Version>> {
        let mut query = vec![("versions", ""), ("prefix", prefix)];
        if !delimiter.is_empty() {
            query.push(("delimiter", delimiter));
        }
        if let Some((key, id)) = from {
            query.push(("key-marker", key));
            if !id.is_empty() {
                query.push(("version-id-marker", id));
            }
        }
        let text = self.ask(Method::GET, None, &query).await?;
        read_versions(&text).ok_or_else(|| odd(&text))
    }

    /// Deletes a version of an object.
    pub async fn delete_version(&self, key: &str, id: &str) -> object_store::Result<()> {
        self.ask(Method::DELETE, Some(key), &[("versionId", id)])
            .await
            .map(drop)
    }

    /// Locks a version until a time, in compliance mode (PutObjectRetention). Such a request needs a checksum of its body.
    pub async fn retain(&self, key: &str, id: &str, until: UtcTime) -> object_store::Result<()> {
        let until = until.whole_seconds();
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>COMPLIANCE</Mode>\
             <RetainUntilDate>{until}</RetainUntilDate></Retention>"
        );
        self.send(Method::PUT, Some(key), &[("retention", ""), ("versionId", id)], body)
            .await
            .map(drop)
    }

    /// Until when a version is locked (HeadObject); nothing without a lock.
    pub async fn locked_until(&self, key: &str, id: &str) -> object_store::Result<Option<UtcTime>> {
        let answer = self
            .call(Method::HEAD, Some(key), &[("versionId", id)], String::new())
            .await?;
        let until = answer.headers().get("x-amz-object-lock-retain-until-date");
        let until = until.and_then(|until| until.to_str().ok());
        Ok(until.and_then(|until| until.parse().ok()))
    }

    /// Throws an upload's parts away.
    pub async fn abort(&self, upload: &Begun) -> object_store::Result<()> {
        self.ask(Method::DELETE, Some(&upload.key), &[("uploadId", &upload.id)])
            .await
            .map(drop)
    }

    async fn ask(&self, method: Method, key: Option<&str>, query: &[(&str, &str)]) -> object_store::Result<String> {
        self.send(method, key, query, String::new()).await
    }

    async fn send(
        &self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        body: String,
    ) -> object_store::Result<String> {
        let answer = self.call(method, key, query, body).await?;
        let body = answer.into_body().bytes().await;
        let body = body.map_err(|error| generic(Box::new(error)))?;
        if body.len() > PAGE_BYTES {
            return Err(odd("more than 16 MiB"));
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn call(
        &self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        body: String,
    ) -> object_store::Result<HttpResponse> {
        let mut url = self.url.clone();
        if let Some(key) = key {
            url.push('/');
            url.push_str(&encoded(key, "/"));
        }
        for (n, (name, value)) in query.iter().enumerate() {
            url.push(if n == 0 { '?' } else { '&' });
            url.push_str(&format!("{name}={}", encoded(value, "")));
        }
        let mut request = http::Request::builder().method(method).uri(url);
        if !body.is_empty() {
            let sum = base64::engine::general_purpose::STANDARD.encode(crc32c(body.as_bytes()).to_be_bytes());
            request = request
                .header("content-type", "application/xml")
                .header("x-amz-checksum-crc32c", sum);
        }
        let mut request: HttpRequest = request
            .body(HttpRequestBody::from(body))
            .map_err(|error| generic(Box::new(error)))?;
        let credential = self.client.credentials().get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(&mut request, None)?;
        let answer = self.wire.call(request).await;
        answer.map_err(|error| generic(Box::new(error)))
    }
}

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source }
}

/// An answer that is cut off or is none of S3's: temporary, as a broken connection is.
fn odd(text: &str) -> object_store::Error {
    let begin: String = text.chars().take(80).collect();
    let source = std::io::Error::other(format!("the store's answer is no whole listing: {begin:?}"));
    generic(Box::new(HttpError::new(HttpErrorKind::Interrupted, source)))
}

/// Percent-encodes everything but unreserved characters (RFC 3986) and those in `kept`, as signatures want it.
fn encoded(text: &str, kept: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let character = char::from(byte);
        if byte.is_ascii_alphanumeric() || "-._~".contains(character) || (byte.is_ascii() && kept.contains(character)) {
            out.push(character);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn read_uploads(text: &str) -> Option<Page<Begun>> {
    let text = whole(text, "ListMultipartUploadsResult")?;
    let found = blocks(text, "Upload").map(|block| {
        Some(Begun {
            key: value(block, "Key")?,
            id: value(block, "UploadId")?,
            at: value(block, "Initiated")?.parse().ok()?,
        })
    });
    Some(Page {
        found: found.collect::<Option<_>>()?,
        prefixes: Vec::new(),
        next: next(text, "NextUploadIdMarker")?,
    })
}

fn read_versions(text: &str) -> Option<Page<Version>> {
    let text = whole(text, "ListVersionsResult")?;
    let read = |block, is_marker| {
        Some(Version {
            key: value(block, "Key")?,
            id: value(block, "VersionId")?,
            size: if is_marker {
                0
            } else {
                value(block, "Size")?.parse().ok()?
            },
            modified: value(block, "LastModified")?.parse().ok()?,
            is_marker,
        })
    };
    // Both kinds in the order in which they stand: the newest of a key first.
    let mut places: Vec<(usize, &str, bool)> = Vec::new();
    for (name, is_marker) in [("Version", false), ("DeleteMarker", true)] {
        let place = |block: &str| block.as_ptr().addr().wrapping_sub(text.as_ptr().addr());
        places.extend(blocks(text, name).map(|block| (place(block), block, is_marker)));
    }
    places.sort_unstable_by_key(|(place, ..)| *place);
    let found = places.into_iter().map(|(_, block, is_marker)| read(block, is_marker));
    Some(Page {
        found: found.collect::<Option<_>>()?,
        prefixes: blocks(text, "CommonPrefixes")
            .map(|block| value(block, "Prefix"))
            .collect::<Option<_>>()?,
        next: next(text, "NextVersionIdMarker")?,
    })
}

/// The content of the outermost element; `None` unless it is closed.
fn whole<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(&format!("<{name}"))?;
    let (_, rest) = rest.split_once('>')?;
    Some(rest.rsplit_once(&format!("</{name}>"))?.0)
}

/// The contents of the elements of this name, which do not hold each other.
fn blocks<'t>(text: &'t str, name: &str) -> impl Iterator<Item = &'t str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(open.as_str())?;
        let (block, after) = after.split_once(close.as_str())?;
        rest = after;
        Some(block)
    })
}

/// The text of an element.
fn value(text: &str, name: &str) -> Option<String> {
    let plain = blocks(text, name).next()?;
    let plain = plain.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    Some(plain.replace("&apos;", "'").replace("&#39;", "'").replace("&amp;", "&"))
}

/// Where the next page begins; `None` if the answer says that there is one, but not where.
fn next(text: &str, second: &str) -> Option<Option<(String, String)>> {
    if value(text, "IsTruncated").as_deref() != Some("true") {
        return Some(None);
    }
    let key = value(text, "NextKeyMarker").filter(|key| !key.is_empty())?;
    Some(Some((key, value(text, second).unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const VERSIONS: &str = "<?xml version=\"1.0\"?><ListVersionsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
        <Name>b</Name><KeyMarker/><IsTruncated>true</IsTruncated><NextKeyMarker>p/b&amp;c</NextKeyMarker>\
        <NextVersionIdMarker>v9</NextVersionIdMarker>\
        <Version><Key>p/a</Key><VersionId>v3</VersionId><LastModified>2026-11-21T03:00:00.000Z</LastModified><Size>9</Size></Version>\
        <DeleteMarker><Key>p/a</Key><VersionId>v2</VersionId><LastModified>2026-11-21T02:00:00.000Z</LastModified></DeleteMarker>\
        <Version><Key>p/a</Key><VersionId>v1</VersionId><LastModified>2026-11-21T01:00:00.000Z</LastModified><Size>7</Size></Version>\
        <CommonPrefixes><Prefix>p/x/</Prefix></CommonPrefixes></ListVersionsResult>";

    #[test]
    fn versions_keep_their_order() {
        let page = read_versions(VERSIONS).unwrap();
        let found: Vec<_> = page
            .found
            .iter()
            .map(|version| (version.id.as_str(), version.size, version.is_marker))
            .collect();
        assert_eq!(found, [("v3", 9, false), ("v2", 0, true), ("v1", 7, false)]);
        assert_eq!(page.prefixes, ["p/x/"]);
        assert_eq!(page.next, Some(("p/b&c".into(), "v9".into())));
    }

    #[test]
    fn what_is_cut_off_is_no_listing() {
        for end in (0..VERSIONS.len()).step_by(7) {
            assert_eq!(read_versions(&VERSIONS[..end]), None, "{end}");
        }
        assert_eq!(read_versions(&VERSIONS.replace("<Size>9", "<Size>-9")), None);
        assert_eq!(read_versions(&VERSIONS.replace("NextKeyMarker", "Other")), None);
        assert_eq!(read_uploads("<html>welcome</html>"), None);
    }

    #[test]
    fn uploads_are_read() {
        let text = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>k</Key><UploadId>u</UploadId>\
            <Initiated>2010-11-10T20:48:33.000Z</Initiated></Upload></ListMultipartUploadsResult>";
        let page = read_uploads(text).unwrap();
        assert_eq!((page.found.len(), page.next), (1, None));
        assert_eq!((page.found[0].key.as_str(), page.found[0].id.as_str()), ("k", "u"));
    }

    #[test]
    fn names_are_encoded_as_signatures_want_it() {
        assert_eq!(encoded("a/b c+d=é~", "/"), "a/b%20c%2Bd%3D%C3%A9~");
        assert_eq!(encoded("a/b", ""), "a%2Fb");
    }
}
