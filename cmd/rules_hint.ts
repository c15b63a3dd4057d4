/** What to do about kernel rules that cannot be written, by what the kernel said. */
export function rulesHint(problem: string): string {
  if (/EPERM|EACCES|permitted|denied/.test(problem)) return "run as root, or grant CAP_NET_ADMIN";
  if (/EPROTONOSUPPORT|EAFNOSUPPORT|EOPNOTSUPP|not supported/i.test(problem)) {
    return "modprobe nf_tables, or a kernel that has it (CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT); until then Services of other nodes are out of reach";
  }
  if (/ENOMEM|ENOBUFS|No buffer/.test(problem)) {
    return "free memory, or net.core.wmem_max and rmem_max; the agent tries again every second";
  }
  return "the agent tries again every second; nft list ruleset shows what is there";
}
