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
mod uplinks;
mod view;
pub mod vxlan;
mod xfrm;

pub use device::DeviceError;
