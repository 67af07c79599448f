//! What a guest is told to run: the image's configuration with the machine's changes on top.
//!
//! Owns: the rules of that merge, as OCI runtimes have them. Refuses: guessing a program where neither
//! image nor machine names one.

use std::collections::HashMap;

use types::Name;
use types::deployment::{Machine, ONLY_WORKLOAD};
use types::flist::ImageConfig;
use types::guest::{Link, RunSpec};

/// virtio-blk serials by which the guest finds its disks.
pub(crate) const IMAGE_SERIAL: &str = "image";
pub(crate) const UPPER_SERIAL: &str = "upper";
/// What a program finds where the image says nothing, as Docker has it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SIGTERM: i32 = 15;
/// Highest signal number of Linux.
const SIGNAL_MAX: i32 = 64;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RunSpecError {
    #[error("neither the image nor the deployment names a program: set `command` or `entrypoint`")]
    NoProgram,
    #[error(
        "the image's stop signal {0:?} is no signal of Linux: pack the image with a correct one"
    )]
    StopSignal(String),
    #[error("the working directory {0:?} is not absolute: set `workdir`")]
    Workdir(String),
}

/// A workload's name; that of its deployment where it has none of its own.
pub(crate) fn hostname<'a>(deployment: &'a Name, workload: &'a Name) -> &'a Name {
    match workload.as_str() {
        ONLY_WORKLOAD => deployment,
        _ => workload,
    }
}

/// The guest's run specification.
pub(crate) fn merge(
    hostname: &Name,
    image: &ImageConfig,
    machine: &Machine,
    link: Link,
    stop_grace_ms: u64,
) -> Result<RunSpec, RunSpecError> {
    let workdir = match &machine.workdir {
        Some(workdir) => workdir.clone(),
        None if image.working_dir.is_empty() => "/".to_owned(),
        None => image.working_dir.clone(),
    };
    if !workdir.starts_with('/') {
        return Err(RunSpecError::Workdir(workdir));
    }
    Ok(RunSpec {
        hostname: hostname.clone(),
        image_serial: IMAGE_SERIAL.to_owned(),
        upper_serial: Some(UPPER_SERIAL.to_owned()),
        argv: argv(image, machine)?,
        env: env(image, machine),
        user: machine.user.clone().unwrap_or_else(|| image.user.clone()),
        workdir,
        stop_signal: stop_signal(&image.stop_signal)?,
        stop_grace_ms,
        link: Some(link),
        further: Vec::new(),
        volumes: Vec::new(),
    })
}

/// A machine's entry point drops the image's command; its command alone keeps the image's entry point.
fn argv(image: &ImageConfig, machine: &Machine) -> Result<Vec<String>, RunSpecError> {
    let (entrypoint, default_command) = match &machine.entrypoint {
        Some(entrypoint) => (entrypoint.as_slice(), [].as_slice()),
        None => (image.entrypoint.as_slice(), image.cmd.as_slice()),
    };
    let command = machine.command.as_deref().unwrap_or(default_command);
    let argv: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    match argv.first() {
        Some(program) if !program.is_empty() => Ok(argv),
        Some(_) | None => Err(RunSpecError::NoProgram),
    }
}

/// The image's variables in their order, each replaced in its place; then the machine's own. Of one that
/// stands twice the last counts, as programs read them.
fn env(image: &ImageConfig, machine: &Machine) -> Vec<String> {
    let set = image.env.iter().filter_map(|entry| entry.split_once('='));
    let own = machine
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let missing = !set.clone().any(|(name, _)| name == "PATH");
    let default = PATH.split_once('=').filter(|_| missing);
    // Looked up, not searched: an image may have ten thousand.
    let mut places = HashMap::new();
    let mut env: Vec<String> = Vec::new();
    for (name, value) in default.into_iter().chain(set).chain(own) {
        let place = *places.entry(name).or_insert(env.len());
        let entry = format!("{name}={value}");
        match env.get_mut(place) {
            Some(held) => *held = entry,
            None => env.push(entry),
        }
    }
    env
}

/// A name with or without `SIG`, or a number, as image configurations have them.
fn stop_signal(text: &str) -> Result<i32, RunSpecError> {
    let error = || RunSpecError::StopSignal(text.to_owned());
    if text.is_empty() {
        return Ok(SIGTERM);
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let number: i32 = text.parse().map_err(|_| error())?;
        return (1..=SIGNAL_MAX)
            .contains(&number)
            .then_some(number)
            .ok_or_else(error);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = bare.strip_prefix("RTMIN") {
        return real_time(offset).ok_or_else(error);
    }
    format!("SIG{bare}")
        .parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| error())
}

/// `RTMIN` and `RTMIN+n` (systemd's images say `SIGRTMIN+3`). libc keeps the first two for itself.
fn real_time(offset: &str) -> Option<i32> {
    const RTMIN: i32 = 34;
    let offset = match offset {
        "" => 0,
        _ => offset.strip_prefix('+')?.parse::<i32>().ok()?,
    };
    RTMIN
        .checked_add(offset)
        .filter(|n| (RTMIN..=SIGNAL_MAX).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Digest, Mac};

    fn machine(fields: &str) -> Machine {
        let flist = Digest([1; 32]);
        serde_json::from_str(&format!(r#"{{"image":{{"flist":"{flist}"}}{fields}}}"#))
            .expect("a machine")
    }

    #[test]
    fn a_machine_goes_by_its_workloads_name_or_by_its_deployments() {
        let [shop, web, main] = ["shop", "web", "main"].map(|n| n.parse::<Name>().expect("a name"));
        assert_eq!(hostname(&shop, &web), &web);
        assert_eq!(hostname(&shop, &main), &shop);
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["serve".to_owned()],
            env: vec!["A=1".to_owned(), "B=2".to_owned()],
            user: "web".to_owned(),
            working_dir: "/srv".to_owned(),
            stop_signal: "SIGQUIT".to_owned(),
        }
    }

    fn run(image: &ImageConfig, fields: &str) -> Result<RunSpec, RunSpecError> {
        let link = Link {
            mac: Mac([2, 0, 10, 1, 2, 3]),
            address: "10.1.2.3/24".parse().expect("an address"),
            gateway: [10, 1, 2, 1].into(),
            dns: [10, 1, 2, 1].into(),
            mtu: 1500,
            address6: None,
        };
        let name = "web".parse().expect("a name");
        merge(&name, image, &machine(fields), link, 10_000)
    }

    #[test]
    fn a_machine_without_changes_runs_the_image() {
        let spec = run(&image(), "").expect("a specification");
        assert_eq!(spec.argv, ["/entry", "serve"]);
        assert_eq!(spec.env, [PATH, "A=1", "B=2"]);
        assert_eq!((spec.user.as_str(), spec.workdir.as_str()), ("web", "/srv"));
        assert_eq!(spec.stop_signal, 3);
    }

    #[test]
    fn an_entry_point_drops_the_images_command_and_a_command_keeps_the_entry_point() {
        for (fields, argv) in [
            (r#","entrypoint":["/x"]"#, &["/x"][..]),
            (r#","command":["y"]"#, &["/entry", "y"]),
            (r#","entrypoint":["/x"],"command":["y"]"#, &["/x", "y"]),
            (r#","command":[]"#, &["/entry"]),
        ] {
            assert_eq!(run(&image(), fields).expect(fields).argv, argv);
        }
    }

    #[test]
    fn no_program_is_an_error_and_never_a_shell() {
        assert_eq!(
            run(&ImageConfig::default(), ""),
            Err(RunSpecError::NoProgram)
        );
        assert!(run(&ImageConfig::default(), r#","command":["/bin/true"]"#).is_ok());
    }

    #[test]
    fn variables_of_the_machine_replace_those_of_the_image_in_their_place() {
        let spec = run(&image(), r#","env":{"A":"9","PATH":"/bin","Z":""}"#).expect("fine");
        assert_eq!(spec.env, ["PATH=/bin", "A=9", "B=2", "Z="]);
    }

    #[test]
    fn a_variable_that_an_image_has_twice_is_the_last_one_and_the_machines_is_the_very_last() {
        let twice = ImageConfig {
            env: ["A=1", "B=2", "A=3", "PATH", "=x"]
                .map(str::to_owned)
                .to_vec(),
            ..image()
        };
        let spec = run(&twice, "").expect("fine");
        assert_eq!(spec.env, [PATH, "A=3", "B=2", "=x"]);
        let spec = run(&twice, r#","env":{"A":"9"}"#).expect("fine");
        assert_eq!(spec.env, [PATH, "A=9", "B=2", "=x"]);
    }

    #[test]
    fn as_many_variables_as_a_configuration_holds_are_merged() {
        let env: Vec<String> = (0..16_000).map(|n| format!("{n}=")).collect();
        let many = ImageConfig { env, ..image() };
        assert_eq!(run(&many, "").expect("fine").env.len(), 16_001);
    }

    #[test]
    fn stop_signals_are_names_or_numbers() {
        for (text, number) in [
            ("", 15),
            ("SIGTERM", 15),
            ("int", 2),
            ("9", 9),
            ("SIGRTMIN+3", 37),
        ] {
            assert_eq!(stop_signal(text), Ok(number), "{text}");
        }
        for bad in ["0", "65", "SIGNOPE", "SIGRTMIN+99", "SIGRTMIN-1", "-1"] {
            assert!(stop_signal(bad).is_err(), "{bad}");
        }
    }
}
