//! `hostile`, the kernel: from the PVH entry in 32-bit mode to 64-bit code.
//!
//! Owns: page tables that map 4 GiB to themselves, and a stack. No interrupt table: an exception is a triple
//! fault, which is one way to end.
//! Refuses: to run as a program of an operating system.
#![cfg_attr(target_os = "none", no_std, no_main)]

// Xen's docs/misc/pvh.pandoc: flat 32-bit segments, paging off, `ebx` points to the start info.
#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .align 4
    .long 4, 4, 18
    .asciz "Xen"
    .long enter

    .text
    .code32
    .global enter
enter:
    cli
    movl $pdpt + 3, pml4
    movl $tables + 3, %eax
    xorl %ecx, %ecx
1:  movl %eax, pdpt(,%ecx,8)
    addl $4096, %eax
    incl %ecx
    cmpl $4, %ecx
    jb 1b
    movl $0x83, %eax
    xorl %ecx, %ecx
2:  movl %eax, tables(,%ecx,8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $2048, %ecx
    jb 2b
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    lgdt pointer
    ljmp $8, $long
    .code64
long:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movabsq $stack_end, %rsp
    movl %ebx, %edi
    xorl %ebp, %ebp
    call hostile_main
3:  hlt
    jmp 3b

    .code32
second:
    movw $16, %ax
    movw %ax, %ds
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    ljmp $8, $second_long
    .code64
second_long:
    movw $16, %ax
    movw %ax, %es
    movw %ax, %ss
    movabsq $second_stack_end, %rsp
    xorl %ebp, %ebp
    call hostile_second
4:  hlt
    jmp 4b

    .section .rodata
    .align 8
segments:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
pointer:
    .word 31
    .long segments

    # Copied to a page below 1 MiB, where another processor begins in real mode.
    .global trampoline, trampoline_end
    .code16
trampoline:
    cli
    lgdtl %cs:(5f - trampoline)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $24, $second
5:  .word 31
    .long segments
trampoline_end:
    .code64

    .section .bss
    .align 4096
pml4:   .skip 4096
pdpt:   .skip 4096
tables: .skip 16384
    .skip 65536
stack_end:
    .skip 65536
second_stack_end:
    "#,
    options(att_syntax)
);

/// Called once, by the code above, on its stack.
#[cfg(target_os = "none")]
// SAFETY: nothing else in this kernel has this name.
#[unsafe(no_mangle)]
extern "C" fn hostile_main(start_info: u64) -> ! {
    let (start, end) = (&raw const trampoline, &raw const trampoline_end);
    hostile::kernel(start_info, (start as u64, end as u64))
}

#[cfg(target_os = "none")]
// SAFETY: both are labels of the code above; only their addresses are taken.
unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

/// Called once by another processor, on a stack of its own.
#[cfg(target_os = "none")]
// SAFETY: nothing else in this kernel has this name.
#[unsafe(no_mangle)]
extern "C" fn hostile_second() -> ! {
    hostile::second()
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panicked(panic: &core::panic::PanicInfo<'_>) -> ! {
    hostile::give_up(panic)
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("hostile is a guest kernel: it is built for x86_64-unknown-none");
}
