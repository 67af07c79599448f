//! Client and server over real sockets: who gets in, what is refused, and in which words.
//!
//! Owns: the proof that both sides' limits and identities hold on a wire.
//! Refuses: a network beyond loopback.

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::process::Stdio;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use api::client::Missing;
    use api::route::Frames;
    use api::{
        Answer, Begin, Body, Client, ClientError, Envelope, Handler, Limits, LogLine, Route,
        SecretKey, Until, Verdict,
    };
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::{Notify, mpsc};
    use tokio_rustls::TlsConnector;
    use types::deployment::{Action, Protocol, Statement};
    use types::node::{Drill, Drilled};
    use types::status::{Ack, DeploymentStatus, Desired, Refusal, RefusalCode};
    use types::trace::{Outcome, Question, Trace, Way};
    use types::vm::Stream;
    use types::{Digest, Name, PublicKey};

    fn node_key() -> SecretKey {
        SecretKey::from_seed([1; 32])
    }

    fn owner_key() -> SecretKey {
        SecretKey::from_seed([2; 32])
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn refusal(code: RefusalCode, message: &str) -> Refusal {
        Refusal {
            code,
            message: message.to_owned(),
        }
    }

    /// Knows one key, counts what it receives and answers by the deployment's name.
    #[derive(Default)]
    struct Fake {
        received: AtomicU64,
        handled: AtomicU64,
        /// The connection of a drill is over.
        ended: Arc<Notify>,
    }

    impl Fake {
        async fn answer(&self, route: Route, mut body: Body) -> Result<Answer, Refusal> {
            self.handled.fetch_add(1, Ordering::Relaxed);
            match route {
                Route::Node => Err(refusal(
                    RefusalCode::Internal,
                    "no node report in this test",
                )),
                Route::Dmesg => Ok(Answer::text("line one\nline two\n")),
                Route::Links | Route::Routes => Ok(Answer::json(&Vec::<u8>::new())),
                Route::Membership(..) => Err(refusal(RefusalCode::NotFound, "no network")),
                Route::Disks | Route::ClaimDisks | Route::UnlockDisk | Route::Decommission => {
                    Err(refusal(RefusalCode::NotFound, "no disk in this test"))
                }
                Route::SetNetwork | Route::ConfirmNetwork | Route::RevertNetwork => {
                    Err(refusal(RefusalCode::NotFound, "no network in this test"))
                }
                Route::NodeMetrics | Route::Metrics(_) => Ok(Answer::metrics(String::new())),
                Route::Trace(digest) => Ok(Answer::bytes(digest.0.to_vec())),
                Route::PutFlist(digest) => {
                    while let Some(bytes) = body.next().await? {
                        self.received
                            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    }
                    Ok(Answer::json(&Missing::new([digest])))
                }
                Route::PutChunk(_) => {
                    let bytes = body.collect().await?;
                    self.received
                        .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    Ok(Answer::json(&serde_json::json!({})))
                }
                Route::PostStatement => {
                    let envelope = Envelope::parse(&body.collect().await?)?;
                    let signed = envelope.open_statement(|key| *key == owner_key().public())?;
                    let Statement { name, version, .. } = signed.statement;
                    Ok(Answer::json(&Ack {
                        name,
                        version,
                        digest: Digest([0; 32]),
                        durable: true,
                    }))
                }
                Route::Deployments => Ok(Answer::json(&Vec::<DeploymentStatus>::new())),
                Route::Deployment { name, wait } => {
                    // Like a node: nothing changes, so a wait lasts until its time is up.
                    if let Some(wait) = wait {
                        tokio::time::sleep(wait.timeout).await;
                    }
                    let workloads = [].into();
                    let desired = Desired::Stopped;
                    Ok(Answer::json(&DeploymentStatus {
                        name,
                        version: 3,
                        desired,
                        durable: true,
                        workloads,
                        volumes: Default::default(),
                        networks: Default::default(),
                        pools: Default::default(),
                        ingress: Default::default(),
                        conditions: Vec::new(),
                    }))
                }
                Route::Drill => {
                    let _: Drill = serde_json::from_slice(&body.collect().await?)
                        .map_err(|e| refusal(RefusalCode::Malformed, &e.to_string()))?;
                    let (answer, over) = Answer::json(&Drilled { pid: 7 }).last();
                    let ended = Arc::clone(&self.ended);
                    tokio::spawn(async move {
                        let _ = over.await;
                        ended.notify_one();
                    });
                    Ok(answer)
                }
                Route::Logs { begin, .. } => {
                    let (sender, lines) = mpsc::channel(1);
                    let seqs = match begin {
                        Begin::Oldest => 0..3,
                        Begin::Tail(tail) => 0..tail,
                        Begin::After { seq, .. } => seq + 1..seq + 4,
                    };
                    tokio::spawn(async move {
                        for seq in seqs {
                            let line = LogLine {
                                seq,
                                time_ms: 5,
                                stream: Stream::Stdout,
                                data: vec![255; 70_000],
                            };
                            if sender.send(Ok(line.to_json_line().into())).await.is_err() {
                                return;
                            }
                        }
                    });
                    Ok(Answer::json_lines(lines))
                }
                Route::NetworkTrace { question, .. } => Ok(Answer::json(&Trace {
                    steps: Vec::new(),
                    outcome: Outcome::Nowhere,
                    message: format!("{:?}", question.port),
                })),
                Route::Capture { frames, .. } => {
                    let (sender, pieces) = mpsc::channel(1);
                    tokio::spawn(async move {
                        let piece = vec![7; frames.snap as usize];
                        let _ = sender.send(Ok(piece.into())).await;
                        let _ = sender.send(Err(api::answer::BrokenOff)).await;
                    });
                    Ok(Answer::pcapng(pieces))
                }
            }
        }
    }

    impl Handler for Fake {
        fn authorise(&self, peer: &PublicKey, _route: &Route) -> Result<(), Refusal> {
            if *peer == owner_key().public() {
                return Ok(());
            }
            Err(refusal(
                RefusalCode::UnknownKey,
                "this key is not the owner's: use another",
            ))
        }

        async fn handle(&self, _peer: PublicKey, route: Route, body: Body) -> Answer {
            self.answer(route, body).await.into()
        }
    }

    /// Short times for what is slow on purpose; generous where a loaded machine might be slow.
    const LIMITS: Limits = Limits {
        handshake: Duration::from_millis(1500),
        header: Duration::from_millis(700),
        body_grace: Duration::from_millis(700),
        connections_per_address: 8,
        ..Limits::NODE
    };

    async fn start() -> (SocketAddr, Arc<Fake>) {
        start_with(LIMITS).await
    }

    async fn start_with(limits: Limits) -> (SocketAddr, Arc<Fake>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let tls = api::tls::server_config(&node_key()).expect("a configuration");
        let fake = Arc::new(Fake::default());
        let handler = Arc::clone(&fake);
        tokio::spawn(async move { api::server::serve(listener, tls, &*handler, limits).await });
        (address, fake)
    }

    fn client(address: SocketAddr, key: &SecretKey) -> Client {
        Client::new(&address.to_string(), node_key().public(), key).expect("a client")
    }

    /// A TLS connection that is the owner's and says what the test likes.
    async fn raw(address: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
        let config =
            api::tls::client_config(&owner_key(), node_key().public()).expect("a configuration");
        let tcp = TcpStream::connect(address).await.expect("connects");
        TlsConnector::from(config)
            .connect(api::tls::server_name(), tcp)
            .await
            .expect("a handshake")
    }

    async fn read_to_end(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
        let mut bytes = Vec::new();
        // A peer that closes without TLS's close_notify is an error here; what came before counts.
        let _ = stream.read_to_end(&mut bytes).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[tokio::test]
    async fn each_call_arrives_and_its_answer_returns() {
        let (address, fake) = start().await;
        let client = Client::connect(&address.to_string(), node_key().public(), &owner_key())
            .await
            .expect("connects");
        assert_eq!(
            client.dmesg().await.expect("dmesg"),
            b"line one\nline two\n"
        );
        assert_eq!(client.deployments().await.expect("a list"), []);
        assert_eq!(
            client
                .deployment(&name("shop"))
                .await
                .expect("a status")
                .version,
            3
        );
        let flist = vec![7; 3 << 20];
        let missing = client
            .put_flist(Digest([9; 32]), flist.into())
            .await
            .expect("accepted");
        assert_eq!(missing, [Digest([9; 32])]);
        client
            .put_chunk(Digest([8; 32]), vec![1; 1000].into())
            .await
            .expect("accepted");
        assert_eq!(fake.received.load(Ordering::Relaxed), (3 << 20) + 1000);
        let statement = Statement {
            node: node_key().public(),
            name: name("shop"),
            version: 4,
            action: Action::Stop,
        };
        let envelope = Envelope::seal_statement(&owner_key(), &statement).expect("it fits");
        let ack = client
            .post_statement(&envelope)
            .await
            .expect("acknowledged");
        assert_eq!((ack.name, ack.version), (name("shop"), 4));
    }

    #[tokio::test]
    async fn many_chunks_go_up_a_few_at_a_time() {
        let (address, fake) = start().await;
        let client = client(address, &owner_key());
        let chunks: Vec<Digest> = (0..50).map(|i| Digest([i; 32])).collect();
        let sent = AtomicU64::new(0);
        client
            .put_chunks(
                &chunks,
                |digest| async move { Ok::<_, ClientError>(vec![digest.0[0]; 10_000].into()) },
                |bytes| {
                    sent.fetch_add(bytes, Ordering::Relaxed);
                },
            )
            .await
            .expect("all go up");
        assert_eq!(sent.load(Ordering::Relaxed), 500_000);
        assert_eq!(fake.received.load(Ordering::Relaxed), 500_000);
    }

    #[tokio::test]
    async fn logs_stream_to_their_end() {
        let (address, _) = start().await;
        let client = client(address, &owner_key());
        let mut lines = client
            .logs(&name("shop"), &name("web"), true, Some(20))
            .await
            .expect("a stream");
        let mut count = 0;
        while let Some(line) = lines.next().await.expect("a line") {
            assert_eq!((line.seq, line.data.len()), (count, 70_000));
            count += 1;
        }
        assert_eq!(count, 20);
    }

    #[tokio::test]
    async fn logs_go_on_where_a_reader_was() {
        let (address, _) = start().await;
        let client = client(address, &owner_key());
        let (shop, web) = (name("shop"), name("web"));
        let begin = Begin::After {
            seq: 40,
            time_ms: 0,
        };
        let lines = client.logs(&shop, &web, true, begin).await;
        let first = lines.expect("a stream").next().await.expect("a line");
        assert_eq!(first.map(|line| line.seq), Some(41));
    }

    #[tokio::test]
    async fn a_trace_is_asked_for_and_read() {
        let (address, _) = start().await;
        let client = client(address, &owner_key());
        let question = Question {
            way: Way::FromOutside,
            port: Some((Protocol::Udp, 53)),
        };
        let (shop, web) = (name("shop"), name("web"));
        let trace = client.network_trace(&shop, &web, question);
        let trace = trace.await.expect("an answer");
        assert_eq!(trace.message, "Some((Udp, 53))");
    }

    #[tokio::test]
    async fn a_capture_comes_as_it_is_and_one_that_breaks_off_has_no_end() {
        let (address, _) = start().await;
        let client = client(address, &owner_key());
        let frames = Frames {
            network: None,
            snap: 9,
        };
        let capture = client.capture(&name("shop"), &name("web"), &frames).await;
        let mut capture = capture.expect("a stream");
        let piece = capture.next().await.expect("bytes");
        assert_eq!(piece.expect("not the end"), vec![7; 9]);
        capture.next().await.expect_err("it broke off");
    }

    #[tokio::test]
    async fn a_last_answer_is_read_before_its_sender_hears_that_it_is_over() {
        let (address, fake) = start().await;
        let client = client(address, &owner_key());
        let drilled = client.drill(&Drill::Node {}).await.expect("an answer");
        assert_eq!(drilled.pid, 7);
        // The server would wait longer for a peer that stays.
        tokio::time::timeout(Duration::from_millis(1500), fake.ended.notified())
            .await
            .expect("this client closes");
    }

    #[tokio::test]
    async fn a_wait_that_cannot_be_met_ends_at_once_and_one_that_is_met_says_so() {
        let (address, _) = start().await;
        let client = client(address, &owner_key());
        let limit = Duration::from_millis(50);
        let shop = name("shop");
        let verdict = |until| client.wait(&shop, until, limit, |_| ());
        assert_eq!(
            verdict(Until::Running).await.expect("a status").1,
            Verdict::Never
        );
        assert_eq!(
            verdict(Until::Stopped).await.expect("a status").1,
            Verdict::Met
        );
    }

    #[tokio::test]
    async fn a_kept_connection_that_the_node_closed_is_replaced() {
        let (address, _) = start().await;
        let client = client(address, &owner_key());
        client.dmesg().await.expect("the first");
        tokio::time::sleep(LIMITS.header + Duration::from_millis(300)).await;
        client
            .dmesg()
            .await
            .expect("the second, on a new connection");
    }

    #[tokio::test]
    async fn another_node_key_than_the_pinned_one_is_refused_and_both_are_shown() {
        let (address, fake) = start().await;
        let pinned = SecretKey::from_seed([3; 32]).public();
        let error = Client::connect(&address.to_string(), pinned, &owner_key())
            .await
            .expect_err("a wrong key");
        assert!(matches!(error, ClientError::WrongKey { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(&pinned.to_string()) && text.contains(&node_key().public().to_string()),
            "{text}"
        );
        assert_eq!(fake.handled.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn an_unknown_key_is_told_so() {
        let (address, fake) = start().await;
        let error = client(address, &SecretKey::from_seed([4; 32]))
            .deployments()
            .await
            .expect_err("a stranger");
        assert_eq!(
            error.refusal().map(|refusal| refusal.code),
            Some(RefusalCode::UnknownKey)
        );
        assert!(error.to_string().contains("use another"));
        assert_eq!(fake.handled.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn nobody_listening_is_unreachable() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let error = client(address, &owner_key())
            .dmesg()
            .await
            .expect_err("nobody");
        assert!(
            error.is_unreachable() && error.to_string().contains(&address.port().to_string()),
            "{error}"
        );
    }

    #[tokio::test]
    async fn no_client_certificate_means_no_connection() {
        let (address, fake) = start().await;
        // What a scanner does: any server certificate will do, none of its own.
        let pinned =
            api::tls::client_config(&owner_key(), node_key().public()).expect("a configuration");
        let mut config = (*pinned).clone();
        config.client_auth_cert_resolver = Arc::new(NoCertificate);
        let tcp = TcpStream::connect(address).await.expect("connects");
        let mut stream = TlsConnector::from(Arc::new(config))
            .connect(api::tls::server_name(), tcp)
            .await
            .expect("1.3: half open");
        let _ = stream
            .write_all(b"GET /v1/node/dmesg HTTP/1.1\r\nhost: x\r\n\r\n")
            .await;
        assert_eq!(read_to_end(&mut stream).await, "");
        assert_eq!(fake.handled.load(Ordering::Relaxed), 0);
    }

    #[derive(Debug)]
    struct NoCertificate;

    impl rustls::client::ResolvesClientCert for NoCertificate {
        fn resolve(
            &self,
            _hints: &[&[u8]],
            _schemes: &[rustls::SignatureScheme],
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            None
        }
        fn has_certs(&self) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn a_stolen_certificate_is_worth_nothing_without_its_key() {
        let (address, fake) = start().await;
        let certificate: CertificateDer<'static> =
            api::tls::certificate(&owner_key()).expect("a certificate");
        let thief = rcgen_pkcs8();
        let signer = rustls::crypto::ring::sign::any_eddsa_type(&thief).expect("a signer");
        let pinned =
            api::tls::client_config(&owner_key(), node_key().public()).expect("a configuration");
        let mut config = (*pinned).clone();
        let stolen = Arc::new(rustls::sign::CertifiedKey::new(vec![certificate], signer));
        config.client_auth_cert_resolver = Arc::new(Stolen(stolen));
        let tcp = TcpStream::connect(address).await.expect("connects");
        let mut stream = TlsConnector::from(Arc::new(config))
            .connect(api::tls::server_name(), tcp)
            .await
            .expect("1.3: half open");
        let _ = stream
            .write_all(b"GET /v1/node/dmesg HTTP/1.1\r\nhost: x\r\n\r\n")
            .await;
        assert_eq!(read_to_end(&mut stream).await, "");
        assert_eq!(fake.handled.load(Ordering::Relaxed), 0);
    }

    #[derive(Debug)]
    struct Stolen(Arc<rustls::sign::CertifiedKey>);

    impl rustls::client::ResolvesClientCert for Stolen {
        fn resolve(
            &self,
            _hints: &[&[u8]],
            _schemes: &[rustls::SignatureScheme],
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
        fn has_certs(&self) -> bool {
            true
        }
    }

    fn rcgen_pkcs8() -> PrivatePkcs8KeyDer<'static> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key pair");
        match PrivateKeyDer::from(pair) {
            PrivateKeyDer::Pkcs8(der) => der.clone_key(),
            _ => panic!("rcgen writes PKCS #8"),
        }
    }

    #[tokio::test]
    async fn an_oversized_body_is_refused_before_it_is_sent_whole() {
        let (address, fake) = start().await;
        for length in ["content-length: 999999999", "transfer-encoding: chunked"] {
            let mut stream = raw(address).await;
            let head = format!("POST /v1/statements HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("is sent");
            let (mut reader, mut writer) = tokio::io::split(stream);
            let flood = tokio::spawn(async move {
                let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
                for _ in 0..16 {
                    if writer.write_all(&chunk).await.is_err() {
                        return;
                    }
                }
            });
            let answer = read_to_end(&mut reader).await;
            assert!(
                answer.starts_with("HTTP/1.1 413") && answer.contains("too_large"),
                "{length}: {answer}"
            );
            flood.await.expect("the flood ends");
        }
        assert_eq!(fake.received.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn the_client_reads_a_413_while_it_is_still_sending() {
        let (address, _) = start().await;
        let client = client(address, &owner_key());
        let error = client
            .put_chunk(Digest([1; 32]), vec![0; 8 << 20].into())
            .await
            .expect_err("too large");
        assert_eq!(
            error.refusal().map(|refusal| refusal.code),
            Some(RefusalCode::TooLarge),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_slow_handshake_is_dropped() {
        let (address, _) = start().await;
        let mut tcp = TcpStream::connect(address).await.expect("connects");
        let started = Instant::now();
        assert_eq!(read_to_end(&mut tcp).await, "");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn a_slow_header_is_a_408_and_an_idle_connection_is_closed_silently() {
        let (address, _) = start().await;
        let mut stream = raw(address).await;
        stream
            .write_all(b"GET /v1/node HTTP/1.1\r\nhost:")
            .await
            .expect("is sent");
        let answer = read_to_end(&mut stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 408") && answer.contains("too_slow"),
            "{answer}"
        );
        assert_eq!(read_to_end(&mut raw(address).await).await, "");
    }

    #[tokio::test]
    async fn a_body_that_stalls_is_a_408_and_one_that_trickles_too() {
        let (address, _) = start().await;
        for trickle in [false, true] {
            let mut stream = raw(address).await;
            let head = b"POST /v1/statements HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{";
            stream.write_all(head).await.expect("is sent");
            let (mut reader, mut writer) = tokio::io::split(stream);
            let drip = tokio::spawn(async move {
                while trickle
                    && writer.write_all(b" ").await.is_ok()
                    && writer.flush().await.is_ok()
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                writer
            });
            let answer = read_to_end(&mut reader).await;
            assert!(
                answer.starts_with("HTTP/1.1 408") && answer.contains("too_slow"),
                "{trickle}: {answer}"
            );
            drip.abort();
        }
    }

    #[tokio::test]
    async fn a_long_header_and_a_wrong_path_are_refused() {
        let (address, _) = start().await;
        let mut stream = raw(address).await;
        let head = format!("GET /v1/node HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(20_000));
        stream.write_all(head.as_bytes()).await.expect("is sent");
        let answer = read_to_end(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        let mut stream = raw(address).await;
        let head = b"GET /etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(head).await.expect("is sent");
        let answer = read_to_end(&mut stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 404") && answer.contains("not_found"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn one_address_cannot_take_every_connection() {
        let (address, _) = start().await;
        let mut held = Vec::new();
        for _ in 0..LIMITS.connections_per_address {
            held.push(TcpStream::connect(address).await.expect("connects"));
        }
        let mut more = TcpStream::connect(address).await.expect("connects");
        let started = Instant::now();
        assert_eq!(read_to_end(&mut more).await, "");
        assert!(
            started.elapsed() < LIMITS.handshake,
            "dropped at once, not by the handshake's limit"
        );
        held.clear();
        // The places are free again as soon as the server has seen the ends.
        let client = client(address, &owner_key());
        let mut tries = 0;
        while client.dmesg().await.is_err() {
            tries += 1;
            assert!(tries < 100, "the places never came back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn strangers_who_hold_every_place_do_not_keep_the_owner_out() {
        let limits = Limits {
            handshake: Duration::from_secs(60),
            connections: 6,
            connections_per_address: 3,
            ..LIMITS
        };
        let (address, _) = start_with(limits).await;
        let mut strangers = Vec::new();
        for n in 0..6 {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            let from = SocketAddr::from(([127, 0, 0, 2 + n / 3], 0));
            socket.bind(from).expect("a loopback address");
            strangers.push(socket.connect(address).await.expect("connects"));
        }
        client(address, &owner_key())
            .dmesg()
            .await
            .expect("an answer");
        // The first to come was the first to go.
        assert_eq!(read_to_end(&mut strangers[0]).await, "");
    }

    #[tokio::test]
    async fn curl_works_with_the_exported_certificate() {
        let (address, _) = start().await;
        let directory = tempfile::tempdir().expect("a directory");
        let pem = api::tls::pem(&owner_key()).expect("PEM");
        // One file, as `sifr key show --pem` prints it.
        let file = directory.path().join("me.pem");
        std::fs::write(&file, pem.certificate + &pem.key).expect("is written");
        let run = tokio::process::Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--insecure",
                "--max-time",
                "20",
                "--cert",
            ])
            .arg(&file)
            .arg("--key")
            .arg(&file)
            .arg(format!("https://{address}/v1/node/dmesg"))
            .stdin(Stdio::null())
            .output()
            .await;
        let output = match run {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("not tested: curl is not installed");
                return;
            }
            run => run.expect("curl runs"),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            text,
            "line one\nline two\n",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
