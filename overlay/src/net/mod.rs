//! The kernel: observe it, apply changes to it. No policy; what to change is decided in [`crate::plan`],
//! [`crate::iface`] and [`crate::masq`].

pub mod carrier;
mod decode;
mod device;
pub mod firewall;
pub mod netlink;
mod queues;
pub mod sysctl;
pub mod tap;
mod view;
pub mod vxlan;

pub use device::DeviceError;
