//! The program on the injecting device ([`super::inject`]): it sends each packet out of the interface that its Ethernet
//! header names ([`super::tunnel`]), to the next hop that the kernel's routes give. Before that it forgets which of our
//! queues the packet came from: the kernel would choose the uplink's queue by that, and not by the flow as for what goes
//! through the sockets, so that a flow's packets could overtake each other.
//!
//! Fifteen instructions, written here as the kernel reads them (`linux/bpf.h`, `struct bpf_insn`): no compiler for BPF is
//! needed to build this, and nothing to load at run time but these bytes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::{sys, tunnel};

/// `struct bpf_insn`: opcode, registers (destination low), offset, immediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    opcode: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(opcode: u8, (to, from): (u8, u8), offset: i16, immediate: i32) -> Instruction {
    Instruction { opcode, registers: to | (from << 4), offset, immediate }
}

/// `BPF_LDX | BPF_MEM | BPF_W` and `BPF_STX`: 32 bits of memory.
const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
/// `BPF_ALU64 | BPF_MOV | BPF_X` and `BPF_K`.
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
/// `BPF_ALU64 | BPF_ADD | BPF_K`.
const ADD: u8 = 0x07;
/// `BPF_JMP | BPF_JGT | BPF_X`.
const JUMP_IF_GREATER: u8 = 0x2d;
/// `BPF_JMP | BPF_CALL` and `BPF_EXIT`.
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Offsets of `queue_mapping`, `data` and `data_end` in `struct __sk_buff`.
const QUEUE_MAPPING: i16 = 12;
const DATA: i16 = 76;
const DATA_END: i16 = 80;
/// See [`tunnel::INTERFACE_AT`].
const INTERFACE_AT: i16 = 2;
const _: () = assert!(INTERFACE_AT as usize == tunnel::INTERFACE_AT);
/// `bpf_redirect_neigh(ifindex, params, plen, flags)`, Linux 5.10.
const REDIRECT_NEIGH: i32 = 152;
/// `TC_ACT_SHOT`.
const DROP: i32 = 2;

const PROGRAM: [Instruction; 15] = [
    instruction(SET, (2, 0), 0, 0),
    instruction(STORE, (1, 2), QUEUE_MAPPING, 0),
    instruction(LOAD, (2, 1), DATA, 0),
    instruction(LOAD, (3, 1), DATA_END, 0),
    instruction(COPY, (4, 2), 0, 0),
    instruction(ADD, (4, 0), 0, 14),
    instruction(JUMP_IF_GREATER, (4, 3), 6, 0), // no Ethernet header: drop
    instruction(LOAD, (1, 2), INTERFACE_AT, 0),
    instruction(SET, (2, 0), 0, 0),
    instruction(SET, (3, 0), 0, 0),
    instruction(SET, (4, 0), 0, 0),
    instruction(CALL, (0, 0), 0, REDIRECT_NEIGH),
    instruction(EXIT, (0, 0), 0, 0),
    instruction(SET, (0, 0), 0, DROP),
    instruction(EXIT, (0, 0), 0, 0),
];

/// Puts the program on what comes in at the device of this index (TCX, Linux 6.6). It is there as long as the returned
/// file is open.
///
/// # Errors
/// `EINVAL`: the kernel is older. `EPERM`: `CAP_BPF` or `CAP_NET_ADMIN` is missing, or the kernel is locked down.
/// `ENOSYS`: it is built without BPF.
pub(super) fn attach(interface: u32) -> io::Result<OwnedFd> {
    let program = sys::bpf_load(&PROGRAM)?;
    sys::bpf_attach_ingress(program.as_fd(), interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_lands_on_the_drop() {
        let jumps = PROGRAM.iter().enumerate().filter(|(_, i)| i.opcode == JUMP_IF_GREATER);
        for (at, jump) in jumps {
            let target = at + 1 + usize::try_from(jump.offset).unwrap_or(usize::MAX);
            assert_eq!(
                PROGRAM[target..],
                [instruction(SET, (0, 0), 0, DROP), instruction(EXIT, (0, 0), 0, 0)]
            );
        }
    }

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(size_of::<Instruction>(), 8);
        let Instruction { opcode, registers, offset, immediate } = instruction(LOAD, (2, 1), DATA, 0);
        assert_eq!((opcode, registers, offset, immediate), (0x61, 0x12, 76, 0));
    }
}
