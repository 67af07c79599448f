//! A list of system calls as a program of the kernel's (seccomp(2), linux/filter.h): a call's number is searched by
//! halves.
//!
//! Owns: that program. When the kernel takes one it runs it for each of its four hundred-odd numbers, to note those
//! that always pass, and compiles it in several turns: a program that compares one number after the other costs
//! a starting thread ten times as much.
//! Refuses: knowing what any call is.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
    SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS,
};
use seccompiler::{BpfProgram, sock_filter};

use crate::confine::Argument;

/// AUDIT_ARCH_X86_64 (linux/audit.h). Calls by another architecture's numbers are killed.
const ARCH: u32 = 0xc000_003e;
/// Places in `struct seccomp_data` (linux/seccomp.h): number, architecture, lower half of the first argument.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;
/// Arguments of a call.
const ARGUMENTS: u8 = 6;
/// Numbers of one [`Group`]: a jump goes 255 instructions far, a number takes two, and the lists of arguments
/// find room beside them.
const GROUP_NUMBERS: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error("system call {0} has no argument {1}: they count from 0 to 5")]
    Argument(libc::c_long, u8),
    #[error("{0} is no number of a system call")]
    Number(libc::c_long),
    #[error("too many arguments are listed for the system calls from {0} on")]
    Long(u32),
}

/// What is done with the calls of a list, and with all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listed {
    Pass,
    Die,
}

/// A listed number and what an argument must be for it; nothing, where it is listed without.
type Rule<'a> = (u32, Vec<&'a Argument>);

/// The program for these calls. A call that is listed twice is listed if either holds.
pub(crate) fn program<'a>(
    calls: impl Iterator<Item = (libc::c_long, Option<&'a Argument>)>,
    listed: Listed,
) -> Result<BpfProgram, FilterError> {
    let rules = rules(calls)?;
    let mut program = vec![
        statement(BPF_LD | BPF_W | BPF_ABS, ARCH_AT),
        branch(BPF_JEQ, ARCH, 1, 0),
        statement(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        statement(BPF_LD | BPF_W | BPF_ABS, NUMBER_AT),
    ];
    program.extend(groups(&rules, listed)?);
    Ok(program)
}

/// By number; those of one number in the order of the list.
fn rules<'a>(
    calls: impl Iterator<Item = (libc::c_long, Option<&'a Argument>)>,
) -> Result<Vec<Rule<'a>>, FilterError> {
    let mut listed = Vec::with_capacity(calls.size_hint().0);
    for (call, argument) in calls {
        let number = u32::try_from(call).map_err(|_| FilterError::Number(call))?;
        if let Some(wrong) = argument.filter(|a| a.index >= ARGUMENTS) {
            return Err(FilterError::Argument(call, wrong.index));
        }
        listed.push((number, argument));
    }
    listed.sort_by_key(|(number, _)| *number);
    let mut rules = Vec::with_capacity(listed.len());
    for same in listed.chunk_by(|a, b| a.0 == b.0) {
        let arguments: Option<Vec<_>> = same.iter().map(|(_, argument)| *argument).collect();
        rules.push((same[0].0, arguments.unwrap_or_default()));
    }
    Ok(rules)
}

/// Which group a number would be in, then that group.
fn groups(rules: &[Rule<'_>], listed: Listed) -> Result<BpfProgram, FilterError> {
    if rules.len() <= GROUP_NUMBERS {
        return Group::of(rules).program(listed).ok_or_else(|| {
            let first = rules.first().map_or(0, |(number, _)| *number);
            FilterError::Long(first)
        });
    }
    let (low, high) = rules.split_at(rules.len() / 2);
    let border = high[0].0;
    let (low, high) = (groups(low, listed)?, groups(high, listed)?);
    let mut program = match u8::try_from(low.len()) {
        Ok(over) => vec![branch(BPF_JGE, border, over, 0)],
        // A jump without a condition goes as far as it must.
        Err(_) => {
            let over = u32::try_from(low.len()).expect("a few thousand instructions");
            vec![
                branch(BPF_JGE, border, 0, 1),
                statement(BPF_JMP | BPF_JA, over),
            ]
        }
    };
    program.extend(low);
    program.extend(high);
    Ok(program)
}

/// Where a branch of a group goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    /// So many instructions on.
    Over(usize),
    /// The call is listed.
    Found,
    /// It is not.
    Missed,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Statement(u32, u32),
    Branch {
        test: u32,
        value: u32,
        yes: To,
        no: To,
    },
}

/// Numbers whose search ends in the same two instructions, which stand behind it.
struct Group(Vec<Step>);

impl Group {
    fn of(rules: &[Rule<'_>]) -> Self {
        let mut steps = Vec::with_capacity(3 * rules.len());
        search(rules, &mut steps);
        Self(steps)
    }

    /// `None`: longer than its jumps reach.
    fn program(&self, listed: Listed) -> Option<BpfProgram> {
        let length = self.0.len();
        let place = |from: usize, to: To| match to {
            To::Over(count) => u8::try_from(count).ok(),
            To::Found => u8::try_from(length - from - 1).ok(),
            To::Missed => u8::try_from(length - from).ok(),
        };
        let mut program = Vec::with_capacity(length + 2);
        for (at, step) in self.0.iter().enumerate() {
            program.push(match *step {
                Step::Statement(code, value) => statement(code, value),
                Step::Branch {
                    test,
                    value,
                    yes,
                    no,
                } => branch(test, value, place(at, yes)?, place(at, no)?),
            });
        }
        let (found, missed) = match listed {
            Listed::Pass => (SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS),
            Listed::Die => (SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_ALLOW),
        };
        program.extend([found, missed].map(|what| statement(BPF_RET | BPF_K, what)));
        Some(program)
    }
}

/// The number is in the accumulator.
fn search(rules: &[Rule<'_>], out: &mut Vec<Step>) {
    let (number, arguments) = match rules {
        [] => {
            // Equal or not, it is not here.
            return out.push(equal(0, To::Missed, To::Missed));
        }
        [one] => one,
        _ => {
            let (low, high) = rules.split_at(rules.len() / 2);
            let here = out.len();
            out.push(equal(0, To::Missed, To::Missed));
            search(low, out);
            out[here] = Step::Branch {
                test: BPF_JGE,
                value: high[0].0,
                yes: To::Over(out.len() - here - 1),
                no: To::Over(0),
            };
            return search(high, out);
        }
    };
    let Some(last) = arguments.len().checked_sub(1) else {
        return out.push(equal(*number, To::Found, To::Missed));
    };
    out.push(equal(*number, To::Over(0), To::Missed));
    let mut loaded = None;
    for (at, argument) in arguments.iter().enumerate() {
        let Argument { index, mask, value } = **argument;
        if loaded != Some((index, mask)) {
            let place = ARGUMENTS_AT + u32::from(index) * ARGUMENT_BYTES;
            out.push(Step::Statement(BPF_LD | BPF_W | BPF_ABS, place));
            if mask != u32::MAX {
                out.push(Step::Statement(BPF_ALU | BPF_AND | BPF_K, mask));
            }
            loaded = Some((index, mask));
        }
        let no = if at == last { To::Missed } else { To::Over(0) };
        out.push(equal(value, To::Found, no));
    }
}

fn equal(value: u32, yes: To, no: To) -> Step {
    Step::Branch {
        test: BPF_JEQ,
        value,
        yes,
        no,
    }
}

fn statement(code: u32, k: u32) -> sock_filter {
    instruction(code, 0, 0, k)
}

fn branch(test: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    instruction(BPF_JMP | test | BPF_K, jt, jf, k)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    let code = u16::try_from(code).expect("codes of linux/filter.h have 16 bits");
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };

    use super::*;

    /// What the kernel would answer, and after how many instructions (kernel document
    /// `networking/filter.rst`).
    fn run(program: &[sock_filter], arch: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
        let load = |at: u32| match at {
            NUMBER_AT => number,
            ARCH_AT => arch,
            _ => {
                let at = at - ARGUMENTS_AT;
                let bytes = arguments[(at / ARGUMENT_BYTES) as usize].to_le_bytes();
                let half = (at % ARGUMENT_BYTES) as usize;
                let half = bytes[half..].first_chunk();
                u32::from_le_bytes(*half.expect("a load within a word"))
            }
        };
        let (mut a, mut at, mut steps) = (0, 0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            (at, steps) = (at + 1, steps + 1);
            let test = |yes| usize::from(if yes { jt } else { jf });
            match u32::from(code) {
                c if c == BPF_LD | BPF_W | BPF_ABS => a = load(k),
                c if c == BPF_ALU | BPF_AND | BPF_K => a &= k,
                c if c == BPF_JMP | BPF_JA => at += k as usize,
                c if c == BPF_JMP | BPF_JEQ | BPF_K => at += test(a == k),
                c if c == BPF_JMP | BPF_JGE | BPF_K => at += test(a >= k),
                c if c == BPF_RET | BPF_K => return (k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// The same list as another compiler of such programs makes it.
    fn other(calls: &[(libc::c_long, Option<Argument>)]) -> BpfProgram {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for (number, argument) in calls {
            let entry = rules.entry(*number).or_default();
            let Some(Argument { index, mask, value }) = *argument else {
                continue;
            };
            let operator = SeccompCmpOp::MaskedEq(mask.into());
            let length = SeccompCmpArgLen::Dword;
            let condition = SeccompCondition::new(index, length, operator, value.into());
            let rule = SeccompRule::new(vec![condition.expect("a condition")]);
            entry.push(rule.expect("a rule"));
        }
        let (kill, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
        let filter = SeccompFilter::new(rules, kill, allow, TargetArch::x86_64);
        BpfProgram::try_from(filter.expect("a filter")).expect("a program")
    }

    fn ours(calls: &[(libc::c_long, Option<Argument>)], listed: Listed) -> BpfProgram {
        let calls = calls.iter().map(|(number, a)| (*number, a.as_ref()));
        program(calls, listed).expect("a program")
    }

    /// Numbers with no argument, or each with up to four values of one argument.
    fn lists() -> impl Strategy<Value = Vec<(libc::c_long, Option<Argument>)>> {
        let values = prop::collection::vec((0u32..6, any::<bool>()), 0..4);
        let call = (0i64..450, 0u8..6, values);
        prop::collection::vec(call, 0..200).prop_map(|calls| {
            let calls: BTreeMap<_, _> = calls.into_iter().map(|(n, i, v)| (n, (i, v))).collect();
            let mut list = Vec::new();
            for (number, (index, values)) in calls {
                if values.is_empty() {
                    list.push((number, None));
                }
                for (value, narrow) in values {
                    let mask = if narrow { 4 } else { u32::MAX };
                    let value = value & mask;
                    list.push((number, Some(Argument { index, mask, value })));
                }
            }
            list
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_list_says_of_every_call_what_another_compiler_makes_it_say(calls in lists()) {
            let (ours, other) = (ours(&calls, Listed::Pass), other(&calls));
            for number in (0..460).chain([1 << 30, u32::MAX]) {
                for argument in [0u64, 1, 2, 3, 4, 5, 0xffff_ffff_0000_0004, 7] {
                    let arguments = [argument; 6];
                    let run = |program| run(program, ARCH, number, arguments).0;
                    prop_assert_eq!(run(&ours), run(&other), "call {} with {}", number, argument);
                }
            }
        }
    }

    #[test]
    fn the_other_list_kills_what_is_on_it() {
        let program = ours(&[(5, None), (7, None)], Listed::Die);
        for (number, expected) in [
            (5, SECCOMP_RET_KILL_PROCESS),
            (6, SECCOMP_RET_ALLOW),
            (7, SECCOMP_RET_KILL_PROCESS),
        ] {
            assert_eq!(run(&program, ARCH, number, [0; 6]).0, expected);
        }
    }

    #[test]
    fn numbers_of_another_architecture_die_and_so_does_all_with_an_empty_list() {
        let i386 = 0x4000_0003;
        let program = ours(&[(5, None)], Listed::Pass);
        assert_eq!(run(&program, i386, 5, [0; 6]).0, SECCOMP_RET_KILL_PROCESS);
        let none = ours(&[], Listed::Pass);
        assert_eq!(run(&none, ARCH, 0, [0; 6]).0, SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn a_call_that_is_listed_with_and_without_an_argument_passes() {
        let argument = Argument {
            index: 1,
            mask: u32::MAX,
            value: 9,
        };
        for calls in [
            [(5, Some(&argument)), (5, None)],
            [(5, None), (5, Some(&argument))],
        ] {
            let program = program(calls.into_iter(), Listed::Pass).expect("a program");
            assert_eq!(run(&program, ARCH, 5, [0; 6]).0, SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn what_cannot_be_a_call_is_refused() {
        let argument = Argument {
            index: 6,
            mask: 1,
            value: 1,
        };
        let error = program([(5, Some(&argument))].into_iter(), Listed::Pass);
        assert_eq!(
            error.expect_err("no such argument"),
            FilterError::Argument(5, 6)
        );
        let error = program([(-1, None)].into_iter(), Listed::Pass);
        assert_eq!(error.expect_err("no number"), FilterError::Number(-1));
        let many: Vec<_> = (0..300)
            .map(|value| Argument {
                index: 0,
                mask: u32::MAX,
                value,
            })
            .collect();
        let error = program(many.iter().map(|a| (5, Some(a))), Listed::Pass);
        assert_eq!(error.expect_err("too many"), FilterError::Long(5));
    }

    #[test]
    fn a_number_is_found_in_a_tenth_of_the_steps() {
        let calls: Vec<_> = (0..160).map(|n| (n * 2, None)).collect();
        let (ours, other) = (ours(&calls, Listed::Pass), other(&calls));
        let steps = |program: &[sock_filter]| -> usize {
            (0..450).map(|n| run(program, ARCH, n, [0; 6]).1).sum()
        };
        assert!(steps(&ours) * 10 < steps(&other));
        assert!(ours.len() < other.len());
    }
}
