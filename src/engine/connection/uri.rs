//! Connection strings: parsed by ourselves, so that only what is known to be harmless reaches the
//! driver.
//!
//! A mirror's connection string comes from its user, the process runs with the operator's
//! identity. So mechanisms that would hand that identity to the host in the string, and options
//! that name files of the operator's file system, are refused by name (`facts` kubernetes 5.5).

use std::fmt;

use thiserror::Error;

/// Why a connection string is refused. Never repeats a value of the string.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UriError {
    /// Not `mongodb://` nor `mongodb+srv://`.
    #[error("the connection string must start with mongodb:// or mongodb+srv://")]
    Scheme,
    /// No host.
    #[error("the connection string names no host: write mongodb://host:27017")]
    NoHost,
    /// A host or a port that cannot be one.
    #[error("host number {0} of the connection string is not host or host:port")]
    Host(usize),
    /// More than one host, or a port, after `mongodb+srv://`.
    #[error("mongodb+srv:// takes exactly one host name, without a port")]
    SrvHost,
    /// `%` not followed by two hex digits, or a character that must be percent-encoded.
    #[error("{0} of the connection string must be percent-encoded (for example @ as %40)")]
    Encoding(&'static str),
    /// A user or password in which a `?` or a `/` is not encoded is read as options: nothing of
    /// that may be shown.
    #[error(
        "the connection string has an @ behind its first / or ?: in a user or password write / as \
         %2F, ? as %3F and @ as %40, in an option @ as %40"
    )]
    CredentialsInOptions,
    /// `name` without `=value`.
    #[error("the connection string's option {0:?} has no value")]
    NoValue(String),
    /// The same option twice.
    #[error("the connection string's option {0:?} is given twice")]
    Twice(String),
    /// An option that is refused, with the reason and what to do.
    #[error("the connection string's option {option:?} is not accepted: {reason}")]
    Refused {
        /// The option's name as written.
        option: String,
        /// What is wrong with it and what to do instead.
        reason: &'static str,
    },
    /// A value that is not one of those allowed.
    #[error("the connection string's option {option:?} takes {allowed}")]
    Value {
        /// The option's name.
        option: String,
        /// The values it takes.
        allowed: &'static str,
    },
}

/// A connection string that passed the allow-list.
///
/// `Debug` and `Display` show hosts only; the string itself is handed to the driver and nowhere
/// else.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ConnectionUri {
    uri: String,
    hosts: String,
    is_unencrypted: bool,
}

/// What an accepted option may hold.
enum Accepts {
    Anything,
    Boolean,
    Number,
    OneOf(&'static [&'static str], &'static str),
}

/// The allow-list, by lower-case name. Everything else is refused.
const ACCEPTED: &[(&str, Accepts)] = &[
    ("appname", Accepts::Anything),
    (
        "authmechanism",
        Accepts::OneOf(
            &["scram-sha-1", "scram-sha-256", "mongodb-x509", "plain"],
            "SCRAM-SHA-1, SCRAM-SHA-256, MONGODB-X509 or PLAIN (with TLS)",
        ),
    ),
    ("authsource", Accepts::Anything),
    ("connecttimeoutms", Accepts::Number),
    ("directconnection", Accepts::Boolean),
    ("heartbeatfrequencyms", Accepts::Number),
    ("localthresholdms", Accepts::Number),
    ("maxidletimems", Accepts::Number),
    ("replicaset", Accepts::Anything),
    ("retryreads", Accepts::Boolean),
    ("retrywrites", Accepts::Boolean),
    ("serverselectiontimeoutms", Accepts::Number),
    ("ssl", Accepts::Boolean),
    ("tls", Accepts::Boolean),
];

/// Options that are harmless but would contradict what the mirror promises: accepted, because
/// people paste the string of their application, and dropped.
const IGNORED: &[&str] = &[
    "compressors",
    "journal",
    "maxconnecting",
    "maxpoolsize",
    "maxstalenessseconds",
    "minpoolsize",
    "readconcernlevel",
    "readpreference",
    "readpreferencetags",
    "sockettimeoutms",
    "timeoutms",
    "uuidrepresentation",
    "w",
    "waitqueuetimeoutms",
    "wtimeoutms",
    "zlibcompressionlevel",
];

const FILES: &str = "it names a file of the operator's file system, which no mirror may read";
const IDENTITY: &str = "it would hand the operator's own identity to the database's host; \
                        use SCRAM-SHA-256 or X.509";
const INSECURE: &str = "it switches the verification of the server off";

/// Options with a reason of their own.
const REFUSED: &[(&str, &str)] = &[
    ("authmechanismproperties", IDENTITY),
    ("gssapiservicename", IDENTITY),
    (
        "loadbalanced",
        "change streams need the replica set's own addresses",
    ),
    ("proxyhost", "connections go to the database directly"),
    ("proxypassword", "connections go to the database directly"),
    ("proxyport", "connections go to the database directly"),
    ("proxyusername", "connections go to the database directly"),
    ("sslclientcertificatekeyfile", FILES),
    ("tlsallowinvalidcertificates", INSECURE),
    ("tlsallowinvalidhostnames", INSECURE),
    ("tlscafile", FILES),
    ("tlscertificatekeyfile", FILES),
    ("tlscertificatekeyfilepassword", FILES),
    ("tlscrlfile", FILES),
    ("tlsinsecure", INSECURE),
];

impl ConnectionUri {
    /// Parses and checks a connection string.
    ///
    /// # Errors
    /// Names what is wrong, never a value of the string.
    pub fn parse(uri: &str) -> Result<Self, UriError> {
        let uri = uri.trim();
        let (scheme, rest) = match (
            uri.strip_prefix("mongodb://"),
            uri.strip_prefix("mongodb+srv://"),
        ) {
            (Some(rest), _) => ("mongodb://", rest),
            (_, Some(rest)) => ("mongodb+srv://", rest),
            _ => return Err(UriError::Scheme),
        };
        let (before_options, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = before_options
            .split_once('/')
            .unwrap_or((before_options, ""));
        if database.contains('@') || options.contains('@') {
            return Err(UriError::CredentialsInOptions);
        }
        let (user_info, hosts) = match authority.rsplit_once('@') {
            Some((user_info, hosts)) => (Some(user_info), hosts),
            None => (None, authority),
        };
        if let Some(user_info) = user_info {
            check_user_info(user_info)?;
        }
        check_hosts(hosts, scheme == "mongodb+srv://")?;
        if !is_percent_encoded(database) || database.contains('/') {
            return Err(UriError::Encoding("the database name"));
        }

        let accepted = check_options(options, scheme == "mongodb+srv://")?;
        let mut checked = format!("{scheme}{authority}/{database}");
        if !accepted.is_empty() {
            checked.push('?');
            checked.push_str(&accepted.join("&"));
        }
        Ok(Self {
            uri: checked,
            hosts: hosts.to_owned(),
            is_unencrypted: accepted.iter().any(is_unencrypted),
        })
    }

    /// Whether it says that the connection is not to be encrypted.
    pub fn is_unencrypted(&self) -> bool {
        self.is_unencrypted
    }

    /// The string for the driver. Holds credentials: never log it.
    pub(crate) fn expose(&self) -> &str {
        &self.uri
    }

    /// The hosts as written, without anything secret.
    pub fn hosts(&self) -> &str {
        &self.hosts
    }
}

impl fmt::Debug for ConnectionUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionUri({})", self.hosts)
    }
}

impl fmt::Display for ConnectionUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hosts)
    }
}

fn check_user_info(user_info: &str) -> Result<(), UriError> {
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    if user.contains('@') || !is_percent_encoded(user) {
        return Err(UriError::Encoding("the user name"));
    }
    if password.contains([':', '@']) || !is_percent_encoded(password) {
        return Err(UriError::Encoding("the password"));
    }
    Ok(())
}

fn check_hosts(hosts: &str, srv: bool) -> Result<(), UriError> {
    if hosts.is_empty() {
        return Err(UriError::NoHost);
    }
    if srv && hosts.contains([',', ':']) {
        return Err(UriError::SrvHost);
    }
    for (index, host) in hosts.split(',').enumerate() {
        let refused = UriError::Host(index + 1);
        let port = match host.strip_prefix('[') {
            // An IPv6 literal: its colons are inside the brackets.
            Some(rest) => match rest.split_once(']') {
                Some((address, port)) if !address.is_empty() => port.strip_prefix(':'),
                _ => return Err(refused),
            },
            None => match host.split_once(':') {
                Some((name, port)) if !name.is_empty() => Some(port),
                None if !host.is_empty() => None,
                _ => return Err(refused),
            },
        };
        // A socket path (`%2Ftmp%2Fmongodb.sock`) would be the operator's own file system.
        let has_path = host.contains('%');
        let bad_port = port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0));
        if bad_port || has_path || host.contains(char::is_whitespace) {
            return Err(refused);
        }
    }
    Ok(())
}

/// Returns the accepted `name=value` pairs as written.
fn check_options(options: &str, srv: bool) -> Result<Vec<&str>, UriError> {
    let mut accepted = Vec::new();
    let mut seen = Vec::new();
    let (mut plain, mut tls) = (false, srv);
    for pair in options.split('&').filter(|pair| !pair.is_empty()) {
        let (option, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.is_empty())
            .ok_or_else(|| UriError::NoValue(option_name(pair).to_owned()))?;
        let name = option.to_ascii_lowercase();
        if IGNORED.contains(&name.as_str()) {
            continue;
        }
        if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            return Err(UriError::Refused {
                option: option.to_owned(),
                reason,
            });
        }
        let Some((_, accepts)) = ACCEPTED.iter().find(|(accepted, _)| *accepted == name) else {
            return Err(UriError::Refused {
                option: option.to_owned(),
                reason: "it is not known; take it out",
            });
        };
        if seen.contains(&name) {
            return Err(UriError::Twice(option.to_owned()));
        }
        let lower = value.to_ascii_lowercase();
        let (fits, allowed) = match accepts {
            Accepts::Anything => (is_percent_encoded(value), "a percent-encoded value"),
            Accepts::Boolean => (lower == "true" || lower == "false", "true or false"),
            Accepts::Number => (value.parse::<u32>().is_ok(), "a number"),
            Accepts::OneOf(values, allowed) => (values.contains(&lower.as_str()), *allowed),
        };
        if !fits {
            return Err(UriError::Value {
                option: option.to_owned(),
                allowed,
            });
        }
        match name.as_str() {
            "authmechanism" => plain = lower == "plain",
            "tls" | "ssl" => tls = lower == "true",
            _ => {}
        }
        seen.push(name);
        accepted.push(pair);
    }
    if plain && !tls {
        return Err(UriError::Refused {
            option: "authMechanism".into(),
            reason: "PLAIN sends the password readable; it needs tls=true",
        });
    }
    Ok(accepted)
}

fn is_unencrypted(pair: &&str) -> bool {
    let pair = pair.to_ascii_lowercase();
    pair == "tls=false" || pair == "ssl=false"
}

/// The part of an option that may be repeated in a message.
fn option_name(pair: &str) -> &str {
    pair.split('=').next().unwrap_or(pair)
}

fn is_percent_encoded(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                let is_hex =
                    |offset: usize| bytes.get(at + offset).is_some_and(u8::is_ascii_hexdigit);
                if !is_hex(1) || !is_hex(2) {
                    return false;
                }
                at += 3;
            }
            b'/' | b'?' | b'#' | b'[' | b']' | b' ' => return false,
            _ => at += 1,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_strings_are_accepted() {
        for uri in [
            "mongodb://localhost",
            "mongodb://localhost:27017/",
            "mongodb://u:p%40ss@a:1,b:2/admin?replicaSet=rs0&authSource=admin&tls=true",
            "mongodb+srv://user:secret@cluster.example.com/?retryWrites=true&w=majority",
            "mongodb://[::1]:27017/?directConnection=true",
        ] {
            ConnectionUri::parse(uri).unwrap_or_else(|error| panic!("{uri}: {error}"));
        }
    }

    #[test]
    fn a_password_that_is_read_as_options_is_not_repeated() {
        for uri in [
            "mongodb://admin:2024?Secret@h/?replicaSet=r",
            "mongodb://admin:2024?Secret=7@h",
            "mongodb://admin:2024?x&Secret@h/admin?tls=true",
            "mongodb://admin:2024/Secret@h/admin?tls=true",
            "mongodb://admin:2024/Secret?7@h",
            "mongodb://admin:2024/Secret@h",
            "mongodb://admin:Secret Wahl@h",
            "mongodb://admin:Se:cret@h",
        ] {
            let error = ConnectionUri::parse(uri).unwrap_err().to_string();
            for part in ["Secret", "2024", "cret", "Wahl", "admin"] {
                assert!(!error.contains(part), "{uri}: {error}");
            }
        }
    }

    #[test]
    fn options_that_would_weaken_the_mirror_are_dropped() {
        let uri =
            ConnectionUri::parse("mongodb://a/?w=0&readPreference=nearest&appName=x").unwrap();
        assert_eq!(uri.expose(), "mongodb://a/?appName=x");
    }

    #[test]
    fn identities_files_and_insecurity_are_refused_by_name() {
        for option in [
            "authMechanism=MONGODB-OIDC",
            "authMechanism=MONGODB-AWS",
            "authMechanism=GSSAPI",
            "authMechanismProperties=ENVIRONMENT:k8s",
            "tlsCAFile=/etc/passwd",
            "tlsCertificateKeyFile=/x",
            "tlsInsecure=true",
            "tlsAllowInvalidCertificates=true",
            "proxyHost=evil",
            "somethingElse=1",
        ] {
            let error = ConnectionUri::parse(&format!("mongodb://a/?{option}")).unwrap_err();
            let name = option.split('=').next().unwrap();
            assert!(error.to_string().contains(name), "{option}: {error}");
        }
    }

    #[test]
    fn plain_needs_tls() {
        assert!(ConnectionUri::parse("mongodb://u:p@a/?authMechanism=PLAIN").is_err());
        assert!(ConnectionUri::parse("mongodb://u:p@a/?authMechanism=PLAIN&tls=true").is_ok());
    }

    #[test]
    fn broken_strings_are_refused_without_repeating_a_secret() {
        for uri in [
            "",
            "localhost:27017",
            "http://s3cret@a",
            "mongodb://",
            "mongodb://u:s3cret@",
            "mongodb://u:s3c:ret@a",
            "mongodb://u:s3cret@@a",
            "mongodb://u:s3cret%4@a",
            "mongodb://u:s3cret@a:port",
            "mongodb://u:s3cret@a:0",
            "mongodb://u:s3cret@a:70000",
            "mongodb://u:s3cret@a,,b",
            "mongodb+srv://u:s3cret@a:27017",
            "mongodb://u:s3cret@%2Ftmp%2Fsocket",
            "mongodb://u:s3cret@a/?tls",
            "mongodb://u:s3cret@a/?tls=maybe",
            "mongodb://u:s3cret@a/?tls=true&tls=false",
        ] {
            let error = ConnectionUri::parse(uri).unwrap_err().to_string();
            assert!(!error.contains("s3c"), "{uri}: {error}");
        }
    }

    #[test]
    fn neither_debug_nor_display_shows_credentials() {
        let uri = ConnectionUri::parse("mongodb://u:s3cret@a:1,b:2/").unwrap();
        assert_eq!(format!("{uri:?} {uri}"), "ConnectionUri(a:1,b:2) a:1,b:2");
    }
}
