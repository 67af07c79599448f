//! Requests as they are written and read back, and what is refused.

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use types::status::WorkloadStatus;
use types::trace::Destination;

use super::*;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn routes() -> impl Strategy<Value = Route> {
    let label = || "[a-z]([a-z0-9-]{0,61}[a-z0-9])?".prop_map(|text| name(&text));
    let digest = || any::<[u8; 32]>().prop_map(Digest);
    let until = prop_oneof![
        Just(Until::Running),
        Just(Until::Stopped),
        Just(Until::Exited),
        Just(Until::Deleted)
    ];
    let timeout = (0..=60_000u64).prop_map(Duration::from_millis);
    let wait = (until, timeout).prop_map(|(until, timeout)| Wait { until, timeout });
    let begin = prop_oneof![
        Just(Begin::Oldest),
        (0..=TAIL_MAX).prop_map(Begin::Tail),
        any::<(u64, u64)>().prop_map(|(seq, time_ms)| Begin::After { seq, time_ms })
    ];
    let way = prop_oneof![
        Just(Way::FromOutside),
        any::<std::net::IpAddr>().prop_map(|at| Way::To(Destination::Address(at))),
        "[a-z][a-z0-9-]{0,20}(\\.[a-z]{1,9})?".prop_map(|name| Way::To(Destination::Name(name))),
    ];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let port = proptest::option::of((protocol, any::<u16>()));
    let question = (way, port).prop_map(|(way, port)| Question { way, port });
    prop_oneof![
        (label(), label(), question).prop_map(|(deployment, workload, question)| {
            Route::NetworkTrace {
                deployment,
                workload,
                question,
            }
        }),
        Just(Route::Links),
        Just(Route::Routes),
        Just(Route::Disks),
        Just(Route::ClaimDisks),
        Just(Route::UnlockDisk),
        Just(Route::Decommission),
        Just(Route::SetNetwork),
        Just(Route::ConfirmNetwork),
        Just(Route::RevertNetwork),
        digest().prop_map(Route::PutFlist),
        digest().prop_map(Route::PutChunk),
        digest().prop_map(Route::Trace),
        label().prop_map(Route::Metrics),
        (label(), proptest::option::of(wait))
            .prop_map(|(name, wait)| Route::Deployment { name, wait }),
        (label(), label()).prop_map(|(name, network)| Route::Membership(name, network)),
        (
            label(),
            label(),
            proptest::option::of(label()),
            1..=SNAP_MAX
        )
            .prop_map(|(deployment, workload, network, snap)| Route::Capture {
                deployment,
                workload,
                frames: Frames { network, snap },
            }),
        (label(), label(), any::<bool>(), begin).prop_map(
            |(deployment, workload, follow, begin)| Route::Logs {
                deployment,
                workload,
                follow,
                begin
            }
        ),
    ]
}

proptest! {
    #[test]
    fn any_route_reads_back_and_fits_a_request_line(route in routes()) {
        let target = route.target();
        assert!(target.len() <= TARGET_MAX);
        assert_eq!(Route::parse(&route.method(), &target), Ok(route));
    }

    #[test]
    fn any_text_is_a_route_or_a_refusal(target in "(/v1)?(/[a-z0-9.%]{0,9}){0,6}(\\?[a-z=&0-9%]{0,20})?", put: bool) {
        let method = if put { Method::PUT } else { Method::GET };
        if let Ok(route) = Route::parse(&method, &target) {
            assert_eq!(Route::parse(&method, &route.target()), Ok(route));
        }
    }
}

#[test]
fn every_route_reads_back_from_what_it_writes() {
    let wait = Some(Wait {
        until: Until::Exited,
        timeout: Duration::from_millis(1500),
    });
    let logs = |follow, begin| Route::Logs {
        deployment: name("shop"),
        workload: name("web"),
        follow,
        begin,
    };
    for (route, line) in [
        (Route::Node, "GET /v1/node"),
        (Route::Dmesg, "GET /v1/node/dmesg"),
        (Route::Links, "GET /v1/node/links"),
        (Route::Routes, "GET /v1/node/routes"),
        (
            Route::PutFlist(Digest([0xab; 32])),
            &format!("PUT /v1/flists/{}", "ab".repeat(32)),
        ),
        (
            Route::Trace(Digest([0xab; 32])),
            &format!("GET /v1/flists/{}/trace", "ab".repeat(32)),
        ),
        (
            Route::PutChunk(Digest([0xcd; 32])),
            &format!("PUT /v1/chunks/{}", "cd".repeat(32)),
        ),
        (Route::PostStatement, "POST /v1/statements"),
        (Route::Deployments, "GET /v1/deployments"),
        (
            Route::Deployment {
                name: name("shop"),
                wait: None,
            },
            "GET /v1/deployments/shop",
        ),
        (
            Route::Deployment {
                name: name("shop"),
                wait,
            },
            "GET /v1/deployments/shop?wait=exited&timeout_ms=1500",
        ),
        (
            logs(true, Begin::Tail(10)),
            "GET /v1/deployments/shop/workloads/web/logs?follow=1&tail=10",
        ),
        (
            logs(false, Begin::Oldest),
            "GET /v1/deployments/shop/workloads/web/logs?follow=0",
        ),
        (
            logs(
                true,
                Begin::After {
                    seq: u64::MAX,
                    time_ms: 7,
                },
            ),
            "GET /v1/deployments/shop/workloads/web/logs?follow=1&after=18446744073709551615&time_ms=7",
        ),
        (
            Route::Capture {
                deployment: name("shop"),
                workload: name("web"),
                frames: Frames {
                    network: None,
                    snap: 96,
                },
            },
            "GET /v1/deployments/shop/workloads/web/capture?snap=96",
        ),
        (
            Route::Capture {
                deployment: name("shop"),
                workload: name("web"),
                frames: Frames {
                    network: Some(name("back")),
                    snap: 96,
                },
            },
            "GET /v1/deployments/shop/workloads/web/capture?network=back&snap=96",
        ),
        (
            Route::NetworkTrace {
                deployment: name("shop"),
                workload: name("web"),
                question: Question {
                    way: Way::To(Destination::Name("db".to_owned())),
                    port: Some((Protocol::Tcp, 5432)),
                },
            },
            "GET /v1/deployments/shop/workloads/web/trace?to=db&tcp=5432",
        ),
        (Route::Drill, "POST /v1/node/drill"),
        (Route::SetNetwork, "POST /v1/node/network"),
        (Route::ConfirmNetwork, "POST /v1/node/network/confirm"),
        (Route::RevertNetwork, "POST /v1/node/network/revert"),
        (Route::NodeMetrics, "GET /v1/node/metrics"),
        (
            Route::Metrics(name("shop")),
            "GET /v1/deployments/shop/metrics",
        ),
    ] {
        assert_eq!(format!("{} {}", route.method(), route.target()), line);
        assert_eq!(Route::parse(&route.method(), &route.target()), Ok(route));
    }
}

#[test]
fn anything_else_is_refused_with_a_reason() {
    let long = format!("/v1/{}", "a".repeat(TARGET_MAX));
    for (method, target, says) in [
        (Method::GET, "/", "there is no request GET /"),
        (Method::GET, "/v1/node/", "there is no request"),
        (
            Method::DELETE,
            "/v1/deployments/shop",
            "there is no request DELETE",
        ),
        (Method::GET, "/v2/node", "there is no request"),
        (Method::PUT, "/v1/chunks/../../etc", "there is no request"),
        (Method::PUT, "/v1/chunks/AB", "digest \"AB\""),
        (Method::GET, "/v1/deployments/%41", "name \"%41\""),
        (
            Method::GET,
            "/v1/deployments/shop?wait=happy",
            "running, stopped, exited or deleted",
        ),
        (
            Method::GET,
            "/v1/deployments/shop?wait=running&timeout_ms=60001",
            "up to 60000",
        ),
        (
            Method::GET,
            "/v1/deployments/shop?timeout_ms=1",
            "\"timeout_ms\" is not known",
        ),
        (Method::GET, "/v1/node?x=1", "\"x\" is not known"),
        (Method::GET, "/v1/node?x", "has no value"),
        (
            Method::GET,
            "/v1/deployments/a/workloads/b/logs?tail=1&tail=2",
            "stands twice",
        ),
        (
            Method::GET,
            "/v1/deployments/a/workloads/b/capture?snap=0",
            "snap",
        ),
        (
            Method::GET,
            "/v1/deployments/a/workloads/b/logs?tail=+1",
            "tail is \"+1\"",
        ),
        (
            Method::GET,
            "/v1/deployments/a/workloads/b/logs?follow=2",
            "follow is \"2\"",
        ),
        (
            Method::GET,
            "/v1/deployments/a/workloads/b/logs?tail=1&after=2&time_ms=3",
            "not at both",
        ),
        (Method::GET, "/v1/node/drill", "there is no request GET"),
        (Method::POST, "/v1/node/drill?kill=node", "not known"),
        (Method::GET, &long, "too long"),
    ] {
        let refusal = Route::parse(&method, target).expect_err(target);
        assert!(
            refusal.message.contains(says),
            "{target}: {}",
            refusal.message
        );
    }
}

fn status(desired: Desired, states: &[State]) -> DeploymentStatus {
    let workload = |state| WorkloadStatus {
        state,
        address: None,
        addresses: Vec::new(),
        ports: vec![],
        restarts: 0,
        exit: None,
        message: None,
        start_ms: None,
        chunks: None,
        timeline: None,
        code: None,
    };
    let workloads = states.iter().enumerate();
    DeploymentStatus {
        name: name("shop"),
        version: 1,
        desired,
        durable: true,
        workloads: workloads
            .map(|(i, s)| (name(&format!("w{i}")), workload(*s)))
            .collect(),
        volumes: Default::default(),
        networks: Default::default(),
        pools: Default::default(),
        ingress: Default::default(),
        conditions: Vec::new(),
    }
}

#[test]
fn a_wait_is_met_not_yet_met_or_never() {
    use Desired::{Deleted, Running as Run, Stopped as Stop};
    use State::{Backoff, Exited, Running, Starting, Stopped, Stopping};
    for (until, desired, states, verdict) in [
        (Until::Running, Run, &[Running, Running][..], Verdict::Met),
        (Until::Running, Run, &[Running, Starting], Verdict::NotYet),
        (Until::Running, Run, &[Running, Backoff], Verdict::NotYet),
        (Until::Running, Run, &[Running, Exited], Verdict::Never),
        (Until::Running, Stop, &[Stopped], Verdict::Never),
        (Until::Running, Deleted, &[], Verdict::Never),
        (Until::Stopped, Stop, &[Stopped, Exited], Verdict::Met),
        (Until::Stopped, Stop, &[Stopping], Verdict::NotYet),
        (Until::Stopped, Run, &[Exited, Exited], Verdict::Met),
        (Until::Stopped, Run, &[Exited, Running], Verdict::NotYet),
        (Until::Stopped, Deleted, &[], Verdict::Met),
        (Until::Exited, Run, &[Exited], Verdict::Met),
        (Until::Exited, Run, &[Backoff], Verdict::NotYet),
        (Until::Exited, Stop, &[Exited], Verdict::Never),
        (Until::Deleted, Deleted, &[], Verdict::Met),
        (Until::Deleted, Deleted, &[Stopping], Verdict::NotYet),
        (Until::Deleted, Run, &[Running], Verdict::Never),
    ] {
        assert_eq!(
            until.judge(&status(desired, states)),
            verdict,
            "{until} {desired:?} {states:?}"
        );
    }
}
