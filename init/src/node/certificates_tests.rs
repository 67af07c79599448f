//! Whose certificate is served to whom, and what is shown of it. Orders themselves are made in `qemu-tests/tests/acme.rs`.

use super::*;

const NOW: u64 = 1_800_000_000;
const DIRECTORY: &str = "https://ca.example/dir";

fn host() -> Host {
    "shop.example".parse().expect("a host")
}

fn wanted(signer: u8, directory: &str) -> Wanted {
    Wanted {
        signer: PublicKey([signer; 32]),
        acme: Acme {
            directory: directory.to_owned(),
            ..Acme::default()
        },
    }
}

fn pair() -> Pair {
    let made = rcgen::generate_simple_self_signed([host().to_string()]).expect("a certificate");
    Pair {
        certificate: made.cert.pem(),
        key: made.signing_key.serialize_pem(),
    }
}

fn wants(certificates: &Certificates, wanted: Wanted) {
    certificates.converge([(host(), wanted)].into());
}

/// As an order ends.
fn ends(certificates: &Certificates, wanted: &Wanted, outcome: Result<Pair, Failed>) {
    let mut state = certificates.inner.state.borrow_mut();
    state.under_way.remove(&host());
    let entry = state.entries.get_mut(&host()).expect("it has begun");
    entry.kept.note(wanted, outcome);
    *entry = Entry::new(entry.kept.clone());
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(work)
}

fn is_own(tls: &TlsConfig) -> bool {
    matches!(tls, TlsConfig::Own { .. })
}

#[test]
fn a_certificate_outlives_the_agent_and_is_not_ordered_twice() {
    let pool = tempfile::tempdir().expect("a directory");
    let open = || Certificates::open(vec![pool.path().to_owned()]);
    let (first, own) = (open(), wanted(1, DIRECTORY));
    wants(&first, own.clone());
    assert_eq!(first.choose(NOW), Choice::Order(host()));
    first.begin(&host(), NOW).expect("it is wanted");
    assert_eq!(first.choose(NOW), Choice::Nothing, "it is under way");
    ends(&first, &own, Ok(pair()));
    block_on(first.save(&host())).expect("saved");
    let second = open();
    wants(&second, own.clone());
    assert!(is_own(&second.tls(&host(), &own.signer)));
    let Choice::Wait(until) = second.choose(NOW) else {
        panic!("nothing is due")
    };
    assert!(
        until > NOW + 365 * 24 * 3600,
        "the certificate ends in 4096"
    );
}

#[test]
fn what_one_tenant_has_ordered_is_not_served_for_another() {
    let certificates = Certificates::open(Vec::new());
    let (first, second) = (wanted(1, DIRECTORY), wanted(2, DIRECTORY));
    wants(&certificates, first.clone());
    certificates.begin(&host(), NOW).expect("it is wanted");
    ends(&certificates, &first, Ok(pair()));
    assert!(is_own(&certificates.tls(&host(), &first.signer)));
    assert!(!is_own(&certificates.tls(&host(), &second.signer)));
    wants(&certificates, second.clone());
    let status = certificates.status(&host()).expect("it is wanted");
    assert_eq!(
        (status.state, status.until_s),
        (CertificateState::Wanted, None)
    );
    // What an order of the first brings when it ends is nobody's.
    let due = certificates.choose(NOW + 60);
    assert_eq!(due, Choice::Order(host()), "the second orders its own");
}

#[test]
fn another_authority_is_asked_at_once_and_the_old_certificate_serves_until_it_answers() {
    let certificates = Certificates::open(Vec::new());
    let (first, second) = (wanted(1, DIRECTORY), wanted(1, "https://other.example/dir"));
    wants(&certificates, first.clone());
    certificates.begin(&host(), NOW).expect("it is wanted");
    ends(&certificates, &first, Ok(pair()));
    assert!(matches!(certificates.choose(NOW + 60), Choice::Wait(_)));
    wants(&certificates, second.clone());
    assert_eq!(certificates.choose(NOW + 60), Choice::Order(host()));
    assert!(is_own(&certificates.tls(&host(), &first.signer)));
}

#[test]
fn failures_wait_are_told_and_do_not_begin_anew_with_the_agent() {
    let pool = tempfile::tempdir().expect("a directory");
    let open = || Certificates::open(vec![pool.path().to_owned()]);
    let (first, own) = (open(), wanted(1, DIRECTORY));
    wants(&first, own.clone());
    let status = first.status(&host()).expect("it is wanted");
    assert_eq!(status.state, CertificateState::Wanted);
    assert!(status.error.expect("why").contains("no time server"));
    first.begin(&host(), NOW).expect("it is wanted");
    let status = first.status(&host()).expect("it is wanted");
    assert_eq!(
        (status.state, status.order_s),
        (CertificateState::Ordered, None)
    );
    ends(&first, &own, Err(Failed::Disk("full".to_owned())));
    block_on(first.save(&host())).expect("saved");
    let second = open();
    wants(&second, own);
    assert_eq!(second.choose(NOW), Choice::Wait(NOW + 60));
    let status = second.status(&host()).expect("it is wanted");
    assert_eq!(
        (status.state, status.failures, status.order_s),
        (CertificateState::Waiting, 1, Some(NOW + 60))
    );
    assert!(
        status
            .error
            .expect("why")
            .contains("could not be kept: full")
    );
    assert!(
        second
            .status(&"other.example".parse().expect("a host"))
            .is_none()
    );
}

#[test]
fn a_certificate_that_ends_while_orders_fail_says_so_in_time() {
    let own = wanted(1, DIRECTORY);
    let mut entry = Entry::new(shelf::tests::name("shop.example", 1));
    entry.kept.note(&own, Ok(pair()));
    entry.life = Some((NOW, NOW + 900));
    let state = |entry: &Entry, now| shown(Some(entry), &own, false, now).state;
    assert_eq!(state(&entry, NOW + 700), CertificateState::Valid);
    entry.kept.note(&own, Err(Failed::Accounts));
    assert_eq!(state(&entry, NOW + 599), CertificateState::Valid);
    assert_eq!(state(&entry, NOW + 600), CertificateState::Ending);
    assert_eq!(state(&entry, NOW + 900), CertificateState::Expired);
    let certificates = Certificates::open(Vec::new());
    wants(&certificates, own);
    assert_eq!(certificates.ending(NOW + 700), None, "there is none yet");
    certificates
        .inner
        .state
        .borrow_mut()
        .entries
        .insert(host(), entry);
    assert_eq!(certificates.ending(NOW), None);
    let said = certificates.ending(NOW + 700).expect("it ends");
    assert!(said.contains("shop.example ends"), "{said}");
}

#[test]
fn names_that_nobody_wants_are_forgotten_when_nothing_of_them_counts_any_more() {
    let pool = tempfile::tempdir().expect("a directory");
    let certificates = Certificates::open(vec![pool.path().to_owned()]);
    let own = wanted(1, DIRECTORY);
    wants(&certificates, own.clone());
    let begun = |at| {
        certificates.begin(&host(), at).expect("it is wanted");
        ends(&certificates, &own, Err(Failed::Accounts));
        block_on(certificates.save(&host())).expect("saved");
    };
    let kept = || certificates.inner.shelf.all::<Name>().len();
    begun(now_s() - REMEMBERED_S - 1);
    block_on(certificates.forget());
    assert_eq!(kept(), 1, "it is wanted");
    certificates.converge(BTreeMap::new());
    block_on(certificates.forget());
    assert_eq!(kept(), 0);
    wants(&certificates, own.clone());
    begun(now_s());
    certificates.converge(BTreeMap::new());
    block_on(certificates.forget());
    assert_eq!(kept(), 1, "an authority counts it still");
}

#[test]
fn a_proof_counts_as_served_when_the_process_has_said_so_and_not_before() {
    let local = tokio::task::LocalSet::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    local.block_on(&runtime.expect("a runtime"), async {
        let certificates = Certificates::open(Vec::new());
        let this = certificates.clone();
        let serving = tokio::task::spawn_local(async move {
            this.serve(&host(), "token".to_owned(), "answer".to_owned())
                .await
        });
        certificates.changed().await;
        assert_eq!(certificates.proofs(&host())["token"], "answer");
        let stand = certificates.stand();
        certificates.served(stand - 1);
        tokio::task::yield_now().await;
        assert!(!serving.is_finished());
        certificates.served(stand);
        serving.await.expect("it ends").expect("served");
    });
}
