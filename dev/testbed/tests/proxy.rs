//! A network that can be cut.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use bson::doc;
use testbed::{Direction, Proxy, ReplicaSet};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const AT_ONCE: Duration = Duration::from_secs(10);
const FOR_A_WHILE: Duration = Duration::from_millis(300);

/// A server that says back what it hears, behind a proxy.
async fn echo() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.into_split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    Proxy::start(port).await.unwrap()
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

async fn say(stream: &mut TcpStream, word: &str) {
    stream.write_all(word.as_bytes()).await.unwrap();
}

async fn hear(stream: &mut TcpStream, length: usize) -> String {
    let mut word = vec![0; length];
    let heard = timeout(AT_ONCE, stream.read_exact(&mut word)).await;
    heard.expect("nothing is heard").unwrap();
    String::from_utf8(word).unwrap()
}

/// What is heard until the connection ends.
async fn hear_the_rest(stream: &mut TcpStream) -> String {
    let mut word = Vec::new();
    let heard = timeout(AT_ONCE, stream.read_to_end(&mut word)).await;
    // A closed connection may also show as a reset.
    let _ = heard.expect("the connection does not end");
    String::from_utf8(word).unwrap()
}

#[tokio::test]
async fn what_is_said_passes_both_ways() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    let word = "x".repeat(1 << 20);
    let (mut from, mut to) = stream.split();
    let mut heard = vec![0; word.len()];
    let (said, listened) = tokio::join!(to.write_all(word.as_bytes()), from.read_exact(&mut heard));
    said.unwrap();
    listened.unwrap();
    assert_eq!(heard, word.as_bytes());
    assert_eq!((proxy.accepted(), proxy.connections().len()), (1, 1));
}

#[tokio::test]
async fn a_cut_ends_connections_and_refuses_new_ones_until_healed() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    say(&mut stream, "a").await;
    assert_eq!(hear(&mut stream, 1).await, "a");
    proxy.cut();
    assert_eq!(hear_the_rest(&mut stream).await, "");
    let refused = async {
        loop {
            match TcpStream::connect(proxy.address()).await {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    timeout(AT_ONCE, refused).await.expect("still open");
    proxy.heal();
    let mut stream = loop {
        match TcpStream::connect(proxy.address()).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    say(&mut stream, "b").await;
    assert_eq!(hear(&mut stream, 1).await, "b");
}

#[tokio::test]
async fn a_direction_that_is_held_delivers_when_healed() {
    for direction in [Direction::ToServer, Direction::ToClient] {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        say(&mut stream, "a").await;
        assert_eq!(hear(&mut stream, 1).await, "a");
        proxy.hold(direction);
        say(&mut stream, "b").await;
        let mut one = [0];
        assert!(timeout(FOR_A_WHILE, stream.read(&mut one)).await.is_err());
        // Later connections meet the same.
        let mut other = connect(&proxy).await;
        say(&mut other, "c").await;
        assert!(timeout(FOR_A_WHILE, other.read(&mut one)).await.is_err());
        proxy.heal();
        assert_eq!(hear(&mut stream, 1).await, "b");
        assert_eq!(hear(&mut other, 1).await, "c");
    }
}

#[tokio::test]
async fn of_two_connections_one_alone_can_be_held_or_closed() {
    let proxy = echo().await;
    let mut first = connect(&proxy).await;
    say(&mut first, "a").await;
    assert_eq!(hear(&mut first, 1).await, "a");
    let mut second = connect(&proxy).await;
    say(&mut second, "b").await;
    assert_eq!(hear(&mut second, 1).await, "b");
    let connections = proxy.connections();
    assert_eq!(connections.len(), 2);
    connections[0].hold(Direction::ToServer);
    connections[1].close();
    assert_eq!(hear_the_rest(&mut second).await, "");
    say(&mut first, "c").await;
    let mut one = [0];
    assert!(timeout(FOR_A_WHILE, first.read(&mut one)).await.is_err());
    connections[0].heal();
    assert_eq!(hear(&mut first, 1).await, "c");
}

#[tokio::test]
async fn replies_are_delayed_and_torn() {
    let proxy = echo().await;
    proxy.delay(FOR_A_WHILE);
    let mut stream = connect(&proxy).await;
    let begun = Instant::now();
    say(&mut stream, "a").await;
    assert_eq!(hear(&mut stream, 1).await, "a");
    assert!(begun.elapsed() >= 2 * FOR_A_WHILE, "{:?}", begun.elapsed());
    proxy.heal();
    proxy.truncate(Direction::ToClient, 3);
    say(&mut stream, "12345").await;
    assert_eq!(hear_the_rest(&mut stream).await, "123");
    proxy.heal();
    let mut stream = connect(&proxy).await;
    say(&mut stream, "12345").await;
    assert_eq!(hear(&mut stream, 5).await, "12345");
}

#[tokio::test]
async fn a_replica_set_behind_proxies_is_reached_through_them_alone() {
    let set = ReplicaSet::builder()
        .behind_proxies()
        .start()
        .await
        .unwrap();
    let proxy = set.node(0).proxy();
    let hello = set.node(0).hello().await.unwrap();
    assert_eq!(hello.get_str("primary").unwrap(), proxy.address());
    let through = set.client().await.unwrap().database("shop");
    let orders = through.collection("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    assert!(proxy.accepted() > 0);
    proxy.hold(Direction::ToClient);
    let write = orders.insert_one(doc! {"_id": 2});
    assert!(timeout(FOR_A_WHILE, write.into_future()).await.is_err());
    let beside = set.node(0).client().await.unwrap().database("shop");
    let there = beside.collection::<bson::Document>("orders");
    assert_eq!(there.count_documents(doc! {}).await.unwrap(), 2);
    proxy.heal();
    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 2);
    // It finds itself in its set again, as long as the proxy lets it.
    set.node(0).restart().await.unwrap();
    set.wait_for_primary().await.unwrap();
    orders.insert_one(doc! {"_id": 3}).await.unwrap();
}
