//! Where brokers are: endpoints as users write them.
//!
//! | accepted | example |
//! |---|---|
//! | a name or address with a port | `broker:7420`, `127.0.0.1:7420`, `[::1]:7420` |
//! | a name or address alone: the default port | `broker`, `127.0.0.1`, `::1` |
//! | several, tried in their order | `10.0.0.1:7420;10.0.0.2:7420` |
//! | with the scheme of another system | `http://broker:7420`, `https://broker:7420` |

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The port of a broker where none is given.
pub const DEFAULT_PORT: u16 = 7420;

/// A host and a port, not resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// The name or address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text
            .strip_prefix("http://")
            .or_else(|| text.strip_prefix("https://"))
            .or_else(|| text.strip_prefix("courser://"))
            .unwrap_or(text);
        let text = text.strip_suffix('/').unwrap_or(text);
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self {
                host: address.to_string(),
                port: DEFAULT_PORT,
            });
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (host, rest) = bracketed.split_once(']')?;
                host.parse::<Ipv6Addr>().ok()?;
                match rest {
                    "" => (host, None),
                    _ => (host, Some(rest.strip_prefix(':')?)),
                }
            }
            None => match text.split_once(':') {
                Some((host, port)) => (is_name(host).then_some(host)?, Some(port)),
                None => (is_name(text).then_some(text)?, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port != 0)?,
            None => DEFAULT_PORT,
        };
        Some(Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// Letters, digits, dots, hyphens and underscores, as domain names and IPv4
/// addresses have them.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// One or more endpoints, tried in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(Vec<Endpoint>);

impl Endpoints {
    /// Reads `host:port`, several of them separated by semicolons.
    ///
    /// # Errors
    ///
    /// If one of them is in none of the accepted formats.
    pub fn parse(text: &str) -> Result<Self, IllegalEndpoint> {
        let illegal = || IllegalEndpoint {
            text: text.to_owned(),
        };
        let endpoints: Option<Vec<Endpoint>> = text.split(';').map(Endpoint::parse).collect();
        endpoints.map(Self).ok_or_else(illegal)
    }

    /// At least one.
    pub(crate) fn of(endpoints: Vec<Endpoint>) -> Self {
        Self(endpoints)
    }

    /// The endpoints.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.0.iter()
    }
}

/// A text that names no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address of a broker; write host:port, or several as host:port;host:port")]
pub struct IllegalEndpoint {
    /// What was given.
    pub text: String,
}

/// What [`Client::connect`](crate::Client::connect) takes as an address.
pub trait IntoEndpoints {
    /// The endpoints that are meant.
    ///
    /// # Errors
    ///
    /// If a text names none.
    fn into_endpoints(self) -> Result<Endpoints, IllegalEndpoint>;
}

impl IntoEndpoints for Endpoints {
    fn into_endpoints(self) -> Result<Endpoints, IllegalEndpoint> {
        Ok(self)
    }
}

impl IntoEndpoints for &str {
    fn into_endpoints(self) -> Result<Endpoints, IllegalEndpoint> {
        Endpoints::parse(self)
    }
}

impl IntoEndpoints for &String {
    fn into_endpoints(self) -> Result<Endpoints, IllegalEndpoint> {
        Endpoints::parse(self)
    }
}

impl IntoEndpoints for String {
    fn into_endpoints(self) -> Result<Endpoints, IllegalEndpoint> {
        Endpoints::parse(&self)
    }
}

impl IntoEndpoints for SocketAddr {
    fn into_endpoints(self) -> Result<Endpoints, IllegalEndpoint> {
        Ok(Endpoints(vec![Endpoint::from(self)]))
    }
}

impl IntoEndpoints for &[SocketAddr] {
    fn into_endpoints(self) -> Result<Endpoints, IllegalEndpoint> {
        if self.is_empty() {
            return Err(IllegalEndpoint {
                text: String::new(),
            });
        }
        Ok(Endpoints(
            self.iter().copied().map(Endpoint::from).collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_accepted_format_is_understood() {
        for (text, expected) in [
            ("broker:7000", "broker:7000"),
            ("broker", "broker:7420"),
            ("my-broker.example.com", "my-broker.example.com:7420"),
            ("127.0.0.1:7420", "127.0.0.1:7420"),
            ("127.0.0.1", "127.0.0.1:7420"),
            ("[::1]:9", "[::1]:9"),
            ("[::1]", "[::1]:7420"),
            ("::1", "[::1]:7420"),
            ("http://broker:80", "broker:80"),
            ("https://broker:443/", "broker:443"),
        ] {
            let endpoints = Endpoints::parse(text).unwrap();
            let shown: Vec<String> = endpoints.iter().map(Endpoint::to_string).collect();
            assert_eq!(shown, [expected], "{text}");
        }
        let several = Endpoints::parse("10.0.0.1:1;10.0.0.2:2").unwrap();
        let ports: Vec<u16> = several.iter().map(Endpoint::port).collect();
        assert_eq!(ports, [1, 2]);
    }

    #[test]
    fn what_is_no_address_is_refused_and_quoted() {
        for text in [
            "",
            ":::",
            "a b",
            "host:",
            "host:0",
            "host:70000",
            ":7420",
            "[::1",
            "[::1]x",
            "[a]:1",
            "a;",
            "a:1:2",
            "http://",
            "a;;b",
        ] {
            let error = Endpoints::parse(text).unwrap_err();
            assert_eq!(error.text, text);
        }
    }
}
