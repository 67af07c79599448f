//! The guest kernel's command line.
//!
//! Owns: its fixed part, the devices on it, and the check of what the node appends.

use crate::memory::layout;

/// COMMAND_LINE_SIZE of x86, the final zero byte included.
pub(crate) const LENGTH_MAX: usize = 2048;

/// One reason each: reset by the keyboard controller is our only way down; a panic resets at once;
/// nothing is printed; the timer is not probed (there is no PIT); the TSC needs no watchdog; the
/// processor's random numbers seed the pool.
const FIXED: &str =
    "reboot=k panic=-1 quiet loglevel=0 no_timer_check tsc=reliable random.trust_cpu=on";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CmdlineError {
    #[error("the kernel command line has {0} bytes, more than {max}: shorten `cmdline`", max = LENGTH_MAX - 1)]
    Length(usize),
    #[error("`cmdline` has characters that are not printable ASCII")]
    Characters,
}

/// Whether the appended part asks for the serial console.
pub(crate) fn wants_serial(appended: &str) -> bool {
    appended
        .split(' ')
        .any(|word| word == "console=ttyS0" || word.starts_with("console=ttyS0,"))
}

/// The whole line: fixed part, serial ports, one parameter per virtio device, what the node appends.
pub(crate) fn build(irqs: &[u32], appended: &str, serial: bool) -> Result<String, CmdlineError> {
    if !appended.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Err(CmdlineError::Characters);
    }
    let mut line = format!("{FIXED} 8250.nr_uarts={}", u8::from(serial));
    for (address, irq) in device_addresses().zip(irqs) {
        line.push_str(&format!(" virtio_mmio.device=4K@{address:#x}:{irq}"));
    }
    if !appended.is_empty() {
        line.push(' ');
        line.push_str(appended);
    }
    if line.len() >= LENGTH_MAX {
        return Err(CmdlineError::Length(line.len()));
    }
    Ok(line)
}

/// Where the virtio devices are, in order.
pub(crate) fn device_addresses() -> impl Iterator<Item = u64> {
    (0..).map(|index: u64| layout::VIRTIO + index * layout::VIRTIO_STRIDE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_order_with_their_interrupts() {
        let line = build(&[5, 6], "", false).expect("fits");
        assert!(line.ends_with(
            " 8250.nr_uarts=0 virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
        ));
    }

    #[test]
    fn a_full_machine_leaves_room_and_too_much_is_refused() {
        let irqs: Vec<u32> = layout::VIRTIO_IRQS.collect();
        let line = build(&irqs, "console=ttyS0", true).expect("fits");
        assert!(line.contains("nr_uarts=1") && line.ends_with(" console=ttyS0"));
        assert_eq!(
            build(&irqs, &"x".repeat(2048), true).map_err(|e| matches!(e, CmdlineError::Length(_))),
            Err(true)
        );
        assert_eq!(build(&[], "a\nb", false), Err(CmdlineError::Characters));
    }

    #[test]
    fn only_the_console_parameter_turns_serial_on() {
        assert!(wants_serial("a console=ttyS0") && wants_serial("console=ttyS0,115200"));
        assert!(
            !wants_serial("console=ttyS01") && !wants_serial("xconsole=ttyS0") && !wants_serial("")
        );
    }
}
