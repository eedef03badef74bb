//! Basic authentication of a site that stands alone: user `opr`, the secret as password.

use axum::body::Body;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::http::body::AnswerBody;
use crate::instance::Secret;

const USER: &[u8] = b"opr:";
const TEXT: &str = "Unauthorized. Use Basic authentication: user \"opr\", password the secret.";

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Whether a request may be served. Without a secret, or with an empty one, all may.
///
/// The secret is compared in time that depends only on the lengths.
pub fn authorized(headers: &HeaderMap, secret: Option<&Secret>) -> bool {
    let Some(secret) = secret.filter(|secret| !secret.expose().is_empty()) else { return true };
    headers.get(AUTHORIZATION).and_then(password).is_some_and(|password| secret.matches(&password))
}

/// What the user `opr` gives as password.
fn password(header: &HeaderValue) -> Option<Vec<u8>> {
    let (scheme, credentials) = header.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64.decode(credentials.trim()).ok()?;
    decoded.strip_prefix(USER).map(<[u8]>::to_vec)
}

/// The answer to those who are not [`authorized`]. It has no cache header: a shared cache that kept it would lock
/// everybody out.
pub fn challenge() -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::own(Body::from(TEXT)));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"site\", charset=\"UTF-8\""));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(header: &str, secret: &str) -> bool {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(header).unwrap())]);
        authorized(&headers, Some(&Secret::new(secret)))
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
    }

    #[test]
    fn only_the_right_user_with_the_right_password_may() {
        assert!(allows(&basic("opr:secret"), "secret"));
        assert!(allows(&basic("opr:se:cr ä"), "se:cr ä"));
        assert!(allows(&basic("opr:secret").replace("Basic", "bASIC"), "secret"));
        assert!(allows(basic("opr:secret1").trim_end_matches('='), "secret1"), "without its padding");
        for header in [
            "",
            "Basic",
            "Basic ",
            "Basic %%%",
            &basic("opr:secret").replace("Basic", "Bearer"),
            &basic("opr:"),
            &basic("opr"),
            &basic(""),
            &basic("secret"),
            &basic(":secret"),
            &basic("root:secret"),
            &basic("OPR:secret"),
            &basic("opr:secret "),
            &basic("opr:secre"),
            &basic("opr:Secret"),
            "secret",
        ] {
            assert!(!allows(header, "secret"), "{header}");
        }
        assert!(!authorized(&HeaderMap::new(), Some(&Secret::new("secret"))));
    }

    #[test]
    fn without_a_secret_everybody_may() {
        assert!(authorized(&HeaderMap::new(), None));
        assert!(authorized(&HeaderMap::new(), Some(&Secret::new(""))));
        assert!(allows(&basic("root:wrong"), ""));
    }

    #[test]
    fn the_challenge_says_what_to_send() {
        let response = challenge();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(response.headers()[WWW_AUTHENTICATE].to_str().unwrap().starts_with("Basic realm="));
        assert!(!response.headers().contains_key("cdn-cache-control"));
    }
}
