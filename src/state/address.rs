//! Where a store behind a network is, and who we are there.
//!
//! # Invariant
//!
//! User, password and everything that may contain them are in no `Debug`, no `Display` and no error: a URL
//! that is wrong is not repeated, because a wrong URL is where a password is found in the wrong place.

use std::fmt;

use percent_encoding::percent_decode_str;
use url::{Host, Url};

/// What a URL of a store behind a network says.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    scheme: Scheme,
    /// A name, or an IP address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// The name of a `PostgreSQL` database, or the number of a Redis one.
    pub(super) database: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Postgres,
    Redis,
}

impl Scheme {
    const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Postgres => 5432,
            Self::Redis => 6379,
        }
    }
}

impl Address {
    /// Reads `postgres://user:pass@host:port/db`; the error says what to write instead.
    pub(super) fn postgres(url: &str) -> Result<Self, &'static str> {
        let url = Url::parse(url).map_err(|_| "write it as in `postgres://user:pass@host:5432/db`")?;
        for (name, value) in url.query_pairs() {
            match (&*name, &*value) {
                ("sslmode", "disable" | "allow" | "prefer") => {}
                ("sslmode", "require" | "verify-ca" | "verify-full") => {
                    return Err("TLS is not supported yet, so `sslmode` can only be `disable` or `prefer`; \
                                to reach a distant server encrypted, use a tunnel");
                }
                ("sslmode", _) => return Err("`sslmode` can be `disable` or `prefer`"),
                _ => return Err("after `?` only `sslmode` is known"),
            }
        }
        let address = Self::read(&url, Scheme::Postgres)?;
        if address.user.is_none() {
            return Err("a user is missing, as in `postgres://user:pass@host:5432/db`");
        }
        if address.database.is_empty() {
            return Err("a database is missing, as in `postgres://user:pass@host:5432/db`");
        }
        Ok(address)
    }

    /// Reads `redis://[[user]:pass@]host:port[/db]`; the error says what to write instead.
    pub(super) fn redis(url: &str) -> Result<Self, &'static str> {
        let url = Url::parse(url).map_err(|_| "write it as in `redis://:pass@host:6379/0`")?;
        if url.query().is_some() {
            return Err("nothing is known after `?`; write it as in `redis://:pass@host:6379/0`");
        }
        let mut address = Self::read(&url, Scheme::Redis)?;
        if address.database.is_empty() {
            address.database.push('0');
        }
        if address.user.is_some() && address.password.is_none() {
            return Err("a password alone follows a colon, as in `redis://:pass@host:6379/0`");
        }
        let number = address.database.parse::<u16>().map_err(|_| "the database is a number, as in `/0`")?;
        address.database = number.to_string();
        Ok(address)
    }

    fn read(url: &Url, scheme: Scheme) -> Result<Self, &'static str> {
        let decoded = |text: &str| {
            let text = percent_decode_str(text).decode_utf8().map_err(|_| "what is encoded is not UTF-8")?;
            if text.contains('\0') { Err("there is a NUL in it") } else { Ok(text.into_owned()) }
        };
        if url.fragment().is_some() {
            return Err("`#` has to be written as `%23`");
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => decoded(name)?,
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => ip.to_string(),
            None => String::new(),
        };
        if host.is_empty() {
            return Err("a host is missing");
        }
        let port = url.port().unwrap_or(scheme.port());
        if port == 0 {
            return Err("the port cannot be 0");
        }
        let user = decoded(url.username())?;
        Ok(Self {
            scheme,
            host,
            port,
            user: (!user.is_empty()).then_some(user),
            password: url.password().map(decoded).transpose()?,
            database: decoded(url.path().trim_start_matches('/'))?,
        })
    }
}

/// The address without who we are there.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, port, database) = (self.scheme.name(), self.port, &self.database);
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{port}/{database}", self.host)
        } else {
            write!(f, "{scheme}://{}:{port}/{database}", self.host)
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn what_is_encoded_is_decoded() {
        let address = Address::postgres("postgres://us%40er:p%2Fw%3A@db.example:7/my%20db").unwrap();
        assert_eq!((&*address.host, address.port), ("db.example", 7));
        assert_eq!(address.user.as_deref(), Some("us@er"));
        assert_eq!(address.password.as_deref(), Some("p/w:"));
        assert_eq!(address.database, "my db");
        let address = Address::redis("redis://:p%40w@[::1]/07").unwrap();
        assert_eq!((&*address.host, address.port), ("::1", 6379));
        assert_eq!((address.user, address.password.as_deref()), (None, Some("p@w")));
        assert_eq!(address.database, "7");
        assert_eq!(Address::redis("redis://host").unwrap().to_string(), "redis://host:6379/0");
        assert_eq!(Address::redis("redis://u:p@[::1]:1").unwrap().to_string(), "redis://[::1]:1/0");
    }

    #[test]
    fn encryption_that_was_asked_for_is_never_left_out() {
        for mode in ["disable", "allow", "prefer"] {
            Address::postgres(&format!("postgres://u@h/d?sslmode={mode}")).unwrap();
        }
        for mode in ["require", "verify-ca", "verify-full"] {
            let why = Address::postgres(&format!("postgres://u@h/d?sslmode={mode}")).unwrap_err();
            assert!(why.contains("TLS is not supported yet"), "{why}");
        }
        assert!(Address::postgres("postgres://u@h/d?sslmode=on").is_err());
        assert!(Address::postgres("postgres://u@h/d?sslmode=disable&sslmode=require").is_err());
    }

    #[test]
    fn nothing_shows_who_we_are() {
        for address in [
            Address::postgres("postgres://ada:secret@h/d").unwrap(),
            Address::redis("redis://ada:secret@h/0").unwrap(),
        ] {
            let shown = format!("{address} {address:?} {address:#?}");
            assert!(!shown.contains("secret") && !shown.contains("ada"), "{shown}");
        }
    }
}
