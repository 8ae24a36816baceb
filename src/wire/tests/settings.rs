//! What a server's settings change.

use super::decode;
use crate::wire::{Code, Settings};
use http::HeaderMap;

#[test]
fn strict_servers_refuse_unknown_fields() {
    let settings = Settings { strict: true, ..Settings::default() };
    let body = br#"{"query": "q", "documents": [], "topn": 3, "more": 1}"#;
    let (_, error) = decode("/v1/rank", &HeaderMap::new(), body, &settings).unwrap_err();
    assert_eq!(error.code, Code::InvalidRequest);
    assert_eq!(error.full_message(), "topn: is not a field of this endpoint");
}

#[test]
fn a_path_is_known_with_a_slash_below_a_base_and_by_another_name() {
    let aliases = [("/v1/reranking", "/v1/rerank"), ("/api/v1/rerank", "/v1/rerank")];
    let settings = Settings {
        base_path: "/podium".to_owned(),
        aliases: aliases.map(|(alias, path)| (alias.to_owned(), path.to_owned())).into(),
        ..Settings::default()
    };
    assert_eq!(settings.check(), Ok(()));
    for (path, expected) in [
        ("/v1/rerank", "/v1/rerank"),
        ("/v1/rerank/", "/v1/rerank"),
        ("/podium/v1/rerank", "/v1/rerank"),
        ("/podium/v1/reranking//", "/v1/rerank"),
        ("/api/v1/rerank", "/v1/rerank"),
        ("/podiumx/v1/rerank", "/podiumx/v1/rerank"),
        ("/podium", "/"),
        ("/", "/"),
    ] {
        assert_eq!(settings.canonical(path), expected, "{path}");
    }
    assert_eq!(Settings::default().canonical("/rerank/"), "/rerank");
    for (base_path, alias, expected) in [
        ("podium", "", "base_path: `podium` must begin with a slash, and not end with one"),
        ("/podium/", "", "base_path: `/podium/` must begin with a slash, and not end with one"),
        ("", "x", "aliases: `x` must begin with a slash, and `/metrics` be a path that ranks"),
        ("", "/x", "aliases: `/x` must begin with a slash, and `/metrics` be a path that ranks"),
    ] {
        let aliases =
            [(alias.to_owned(), "/metrics".to_owned())].into_iter().filter(|(alias, _)| !alias.is_empty());
        let settings =
            Settings { base_path: base_path.to_owned(), aliases: aliases.collect(), ..Settings::default() };
        assert_eq!(settings.check(), Err(expected.to_owned()));
    }
    let aliases = [("x".to_owned(), "/rerank".to_owned())].into();
    let expected = "aliases: `x` must begin with a slash, and `/rerank` be a path that ranks";
    assert_eq!(Settings { aliases, ..Settings::default() }.check(), Err(expected.to_owned()));
}
