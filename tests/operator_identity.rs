//! Connection strings are written by users; the process that reads them has the operator's token,
//! its environment and the credentials of everybody's mirrors. A peer that keeps every byte shows
//! what a string of one user can make it give away.

mod common;

use std::collections::BTreeMap;

use bson::doc;
use common::canary::assert_none_of;
use common::cluster::{Cluster, mirror, secret};
use common::eventually;
use common::recorder::{Manner, Recorder, contains};
use serde_json::Value;
use testbed::ReplicaSet;

/// Soon tells that nobody answers.
const IMPATIENT: &str = "serverSelectionTimeoutMS=1500&connectTimeoutMS=1000";

/// Of the user who wrote the string, for whoever can do without it: it may not be readable either.
const OWN_PASSWORD: &str = "mallorys-own";

/// What is refused: what stands before the hosts, the host if it is another, the options, and what
/// the status has to name. `TOKEN` is the path of a file that holds the operator's token.
const REFUSED: &[(&str, &str, &str, &str)] = &[
    ("", "", "authMechanism=MONGODB-AWS", "authMechanism"),
    ("a:b@", "", "authMechanism=MONGODB-AWS", "authMechanism"),
    (
        "",
        "",
        "authMechanism=mongodb-aws&authSource=$external",
        "authMechanism",
    ),
    ("", "", "authMechanism=MONGODB-OIDC", "authMechanism"),
    (
        "",
        "",
        "authMechanismProperties=ENVIRONMENT:k8s&authMechanism=MONGODB-OIDC",
        "authMechanismProperties",
    ),
    (
        "",
        "",
        "authMechanism=MONGODB-OIDC&authMechanismProperties=ENVIRONMENT:azure,TOKEN_RESOURCE:a",
        "authMechanism",
    ),
    (
        "",
        "",
        "authMechanism=MONGODB-OIDC&authMechanismProperties=ENVIRONMENT:gcp,TOKEN_RESOURCE:a",
        "authMechanism",
    ),
    (
        "",
        "",
        "authMechanismProperties=ENVIRONMENT:k8s,ALLOWED_HOSTS:127.0.0.1",
        "authMechanismProperties",
    ),
    (
        "",
        "",
        "authMechanism=SCRAM-SHA-256&AUTHMECHANISM=MONGODB-OIDC",
        "AUTHMECHANISM",
    ),
    ("a@", "", "authMechanism=GSSAPI", "authMechanism"),
    ("a@", "", "gssapiServiceName=mongodb", "gssapiServiceName"),
    ("a:b@", "", "authMechanism=PLAIN", "authMechanism"),
    ("a:b@", "", "authMechanism=PLAIN&tls=false", "authMechanism"),
    ("a:b@", "", "authMechanism=MONGODB-CR", "authMechanism"),
    ("", "", "authMechanism=%4DONGODB-OIDC", "authMechanism"),
    ("", "", "tls=true&tlsCAFile=TOKEN", "tlsCAFile"),
    ("", "", "tls=true&TLSCAFILE=TOKEN", "TLSCAFILE"),
    ("", "", "tls=true&tlsCA%46ile=TOKEN", "tlsCA%46ile"),
    ("", "", "tls=true;tlsCAFile=TOKEN", "tls"),
    (
        "",
        "",
        "tls=true&tlsCertificateKeyFile=TOKEN",
        "tlsCertificateKeyFile",
    ),
    (
        "",
        "",
        "tls=true&tlsCertificateKeyFilePassword=a",
        "tlsCertificateKeyFilePassword",
    ),
    ("", "", "tls=true&tlsCRLFile=TOKEN", "tlsCRLFile"),
    (
        "",
        "",
        "ssl=true&sslClientCertificateKeyFile=TOKEN",
        "sslClientCertificateKeyFile",
    ),
    ("", "", "tls=true&tlsInsecure=true", "tlsInsecure"),
    (
        "",
        "",
        "tls=true&tlsAllowInvalidCertificates=true",
        "tlsAllowInvalidCertificates",
    ),
    (
        "",
        "",
        "tls=true&tlsAllowInvalidHostnames=true",
        "tlsAllowInvalidHostnames",
    ),
    ("", "", "proxyHost=127.0.0.1&proxyPort=1", "proxyHost"),
    ("", "", "proxyUsername=a", "proxyUsername"),
    ("", "", "loadBalanced=true", "loadBalanced"),
    ("", "", "srvServiceName=mongodb", "srvServiceName"),
    ("", "", "autoEncryption=true", "autoEncryption"),
    ("", "", "tls=true&tls=false", "tls"),
    ("", "%2Ftmp%2Fmongodb.sock", "", "host number 1"),
    ("", "RECORDER,%2Ftmp%2Fmongodb.sock", "", "host number 2"),
];

/// What is taken; a server that somebody chose hears it.
const TAKEN: &[(&str, &str)] = &[
    ("", "tls=false"),
    ("", "tls=true"),
    ("", "directConnection=true"),
    ("", "appName=a;tlsInsecure=true"),
    ("", "compressors=zlib,snappy,zstd&zlibCompressionLevel=9"),
    ("mallory:mallorys-own@", "tls=false"),
    ("mallory:mallorys-own@", "authSource=$external"),
    ("mallory:mallorys-own@", "authMechanism=SCRAM-SHA-1"),
    ("mallory:mallorys-own@", "authMechanism=SCRAM-SHA-256"),
    ("mallory:mallorys-own@", "authMechanism=PLAIN&tls=true"),
    ("", "authMechanism=MONGODB-X509"),
    ("", "authMechanism=MONGODB-X509&tls=true"),
];

/// The environment of a pod that has more secrets than the operator needs.
fn environment(nobody: &str, token: &str) -> Vec<(&'static str, String)> {
    let own = |name: &str| format!("canary-{name}");
    let proxy = format!("http://canary-proxy:canary-proxy@{nobody}");
    vec![
        ("ALL_PROXY", proxy.clone()),
        ("AWS_ACCESS_KEY_ID", own("aws-id")),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", own("aws-container")),
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            format!("http://{nobody}/credentials"),
        ),
        ("AWS_ROLE_ARN", own("aws-role")),
        ("AWS_SECRET_ACCESS_KEY", own("aws-key")),
        ("AWS_SESSION_TOKEN", own("aws-session")),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_owned()),
        ("AZURE_CLIENT_ID", own("azure-client")),
        ("AZURE_CLIENT_SECRET", own("azure-secret")),
        ("AZURE_FEDERATED_TOKEN_FILE", token.to_owned()),
        ("GCE_METADATA_HOST", nobody.to_owned()),
        ("GOOGLE_APPLICATION_CREDENTIALS", token.to_owned()),
        ("HTTP_PROXY", proxy.clone()),
        ("KRB5CCNAME", token.to_owned()),
        ("KUBERNETES_SERVICE_HOST", "127.0.0.1".to_owned()),
        (
            "MONGODB_URI",
            format!("mongodb://canary-a:canary-b@{nobody}"),
        ),
        ("SSL_CERT_FILE", token.to_owned()),
        ("all_proxy", proxy.clone()),
        ("http_proxy", proxy),
    ]
}

/// A mirror and the Secret that it alone names, with this string, by the name of both.
fn pair(name: &str, uri: &str) -> String {
    let target = format!("  target: {{database: {name}-copy}}\n");
    secret(name, uri) + &mirror(name, name, "shop", &target)
}

/// A mirror of a Secret's database into this string's.
fn into(name: &str, source: &str, uri: &str) -> String {
    let target = format!("  target: {{database: {name}-copy, uriSecretRef: {{name: {name}}}}}\n");
    secret(name, uri) + &mirror(name, source, "shop", &target)
}

/// The reason and the message of each mirror that has a problem or mirrors.
async fn outcomes(cluster: &Cluster) -> BTreeMap<String, (String, String)> {
    let list = cluster.kubectl(&["get", "mgm", "-o", "json"]).await;
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let mirrors = list["items"].as_array().expect("a list").iter();
    let outcome = |mirror: &Value| {
        let conditions = mirror["status"]["conditions"].as_array()?;
        let ready = conditions.iter().find(|one| one["type"] == "Ready")?;
        let (reason, message) = (ready["reason"].as_str()?, ready["message"].as_str()?);
        let name = mirror["metadata"]["name"].as_str()?;
        let is_settled = !["Pending", "Copying", "CatchingUp"].contains(&reason);
        is_settled.then(|| (name.to_owned(), (reason.to_owned(), message.to_owned())))
    };
    mirrors.filter_map(outcome).collect()
}

/// Waits until so many mirrors have come to something; each may try again meanwhile.
async fn settled(cluster: &Cluster, count: usize) -> BTreeMap<String, (String, String)> {
    let mut seen = BTreeMap::new();
    eventually("every mirror has come to something", async || {
        seen.extend(outcomes(cluster).await);
        (seen.len() == count).then_some(())
    })
    .await;
    seen
}

/// A server with authentication, and the mirror of somebody who has nothing to do with it.
struct Stage {
    cluster: Cluster,
    token: String,
    /// The string of the mirror that is nobody else's business.
    victims: String,
    /// Listens where the environment says that credentials come from, and that proxies are.
    nobody: Recorder,
    _set: ReplicaSet,
    folder: tempfile::TempDir,
}

impl Stage {
    async fn start() -> Self {
        let set = ReplicaSet::builder().auth(true).start().await.unwrap();
        let client = set.client().await.unwrap();
        let orders = client.database("shop").collection("orders");
        orders.insert_one(doc! {"_id": 1}).await.unwrap();
        let (user, password) = ("canary-victim", "canary-victims");
        set.create_user(user, password, ["root".into()])
            .await
            .unwrap();
        let nobody = Recorder::start(Manner::Silent).await;
        let mut cluster = Cluster::without_operator().await;
        let folder = tempfile::tempdir().unwrap();
        let token = cluster.token();
        let path = folder.path().join("token");
        std::fs::write(&path, &token).unwrap();
        let path = path.to_str().unwrap();
        cluster.start_operator_with(&environment(&nobody.address, path));
        let victims = set.uri_as(user, password);
        cluster.apply(&pair("victim", &victims)).await;
        cluster.wait("victim", ".status.phase", "Mirroring").await;
        Self {
            cluster,
            token,
            victims,
            nobody,
            _set: set,
            folder,
        }
    }

    /// Everything that a recorder heard holds nothing that is somebody else's.
    fn told_nothing(&self, what: &str, recorder: &Recorder) {
        let mut secrets: Vec<&str> = vec![OWN_PASSWORD];
        // Each part of a token tells something, and the last one is what makes it valid.
        secrets.extend(self.token.split('.'));
        for bytes in recorder.heard() {
            assert_none_of(&format!("what {what} was sent"), bytes, &secrets);
        }
    }

    fn nobody_was_asked(&self) {
        let heard = self.nobody.heard();
        assert!(heard.is_empty(), "the environment was followed: {heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strings_that_want_the_operators_identity_or_files_are_refused_by_name() {
    let stage = Stage::start().await;
    let recorder = Recorder::start(Manner::Talking).await;
    let token = stage.folder.path().join("token");
    let encoded = token.to_str().unwrap().replace('/', "%2F");
    let mut manifest = String::new();
    for (index, (login, host, options, _)) in REFUSED.iter().enumerate() {
        let host = if host.is_empty() { "RECORDER" } else { host };
        let host = host.replace("RECORDER", &recorder.address);
        let options = options.replace("TOKEN", &encoded);
        let uri = format!("mongodb://{login}{host}/?{options}");
        manifest += &pair(&format!("from-{index}"), &uri);
        manifest += &into(&format!("into-{index}"), "victim", &uri);
    }
    stage.cluster.apply(&manifest).await;
    let outcomes = settled(&stage.cluster, 2 * REFUSED.len() + 1).await;
    for (index, (_, host, options, named)) in REFUSED.iter().enumerate() {
        for side in ["from", "into"] {
            let name = format!("{side}-{index}");
            let (reason, message) = &outcomes[&name];
            let what = format!("{host} {options}: {reason}: {message}");
            assert_eq!(reason, "InvalidUri", "{what}");
            assert!(message.contains(named), "{what}");
            assert!(message.contains(&format!("\"{name}\"")), "{what}");
        }
    }
    // They were refused before anybody was connected to.
    assert!(recorder.heard().is_empty(), "{:?}", recorder.heard());
    stage.nobody_was_asked();
    assert_eq!(outcomes["victim"].0, "Mirroring");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_a_user_chose_hears_nothing_that_is_somebody_elses() {
    let stage = Stage::start().await;
    let mut manifest = String::new();
    let mut recorders = Vec::new();
    for manner in [Manner::Silent, Manner::Closing, Manner::Talking] {
        for (login, options) in TAKEN {
            let recorder = Recorder::start(manner).await;
            let address = &recorder.address;
            let uri = format!("mongodb://{login}{address}/?{options}&{IMPATIENT}");
            let index = recorders.len();
            manifest += &pair(&format!("from-{index}"), &uri);
            manifest += &into(&format!("into-{index}"), "victim", &uri);
            recorders.push((
                format!("a server {manner:?}, by {login} {options},"),
                recorder,
            ));
        }
    }
    // The same name in another namespace, with a string that is worth something.
    let theirs = "apiVersion: v1\nkind: Namespace\nmetadata: {name: theirs}\n---\n".to_owned()
        + &secret("from-0", &stage.victims)
            .replace("{name: from-0}", "{name: from-0, namespace: theirs}");
    stage.cluster.apply(&theirs).await;
    stage.cluster.apply(&manifest).await;
    let outcomes = settled(&stage.cluster, 2 * recorders.len() + 1).await;
    for (index, (what, recorder)) in recorders.iter().enumerate() {
        recorder.hears("anything", |bytes| !bytes.is_empty()).await;
        stage.told_nothing(what, recorder);
        for side in ["from", "into"] {
            let (reason, message) = &outcomes[&format!("{side}-{index}")];
            assert_ne!(reason, "InvalidUri", "{what} {message}");
            assert_ne!(reason, "Mirroring", "{what} {message}");
        }
    }
    // One that offers every way to log in is answered with the one that keeps the password.
    let of = |wanted: &'static str| {
        let is_it = move |(what, _): &&(String, Recorder)| what.contains(wanted);
        recorders.iter().filter(is_it)
    };
    for (_, recorder) in of("Talking, by mallory:mallorys-own@ tls=false") {
        let scram = "SCRAM-SHA-256";
        recorder.hears(scram, |bytes| contains(bytes, scram)).await;
    }
    for (what, recorder) in of("Talking") {
        for mechanism in ["MONGODB-OIDC", "MONGODB-AWS", "GSSAPI", "PLAIN"] {
            let heard = recorder.heard();
            let is_there = |bytes: &Vec<u8>| contains(bytes, mechanism);
            assert!(!heard.iter().any(is_there), "{what} was sent {mechanism}");
        }
    }
    stage.nobody_was_asked();
    assert_eq!(outcomes["victim"].0, "Mirroring");
}

/// It would see where the operator's token goes; and its own password is in its address.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_the_environment_names_is_not_used_and_its_password_not_shown() {
    let cluster = Cluster::without_operator().await;
    let recorder = Recorder::start(Manner::Silent).await;
    for scheme in ["http", "https", "socks5", "gopher"] {
        let proxy = format!("{scheme}://user:canary-proxy@{}", recorder.address);
        let said = cluster.operator_that_fails(&[("HTTPS_PROXY", proxy)]).await;
        assert!(said.contains("unset HTTPS_PROXY"), "{said}");
    }
    assert!(recorder.heard().is_empty());
}
