/** Numbers of nf_tables and nfnetlink (linux/netfilter/nf_tables.h, nfnetlink.h; types: nft's datatype.h). */

export const NFNL_SUBSYS_CTNETLINK = 1;
export const NFNL_SUBSYS_NFTABLES = 10;
export const NFNLGRP_NFTABLES = 7;

export const NFNL_MSG_BATCH_BEGIN = 16;
export const NFNL_MSG_BATCH_END = 17;

export const NFPROTO_UNSPEC = 0;
export const NFPROTO_INET = 1;
export const NFPROTO_IPV4 = 2;
export const NFPROTO_IPV6 = 10;

export const MSG = {
  NEWTABLE: 0,
  GETTABLE: 1,
  DELTABLE: 2,
  NEWCHAIN: 3,
  GETCHAIN: 4,
  DELCHAIN: 5,
  NEWRULE: 6,
  GETRULE: 7,
  DELRULE: 8,
  NEWSET: 9,
  GETSET: 10,
  DELSET: 11,
  NEWSETELEM: 12,
  GETSETELEM: 13,
  DELSETELEM: 14,
  NEWGEN: 15,
  GETGEN: 16,
} as const;

export const GENERATION_ID = 1;
export const TABLE = { NAME: 1, FLAGS: 2, OWNER: 7 } as const;
/** The table ends with the socket that made it (kernel 5.12). */
export const NFT_TABLE_F_OWNER = 2;

export const CHAIN = { TABLE: 1, NAME: 3, HOOK: 4, POLICY: 5, TYPE: 7 } as const;
export const HOOK = { NUM: 1, PRIORITY: 2 } as const;
/** Places of the inet hooks, by the names nft gives them. */
export const HOOKS = ["prerouting", "input", "forward", "output", "postrouting"] as const;
export type HookName = typeof HOOKS[number];

export const RULE = { TABLE: 1, CHAIN: 2, HANDLE: 3, EXPRESSIONS: 4, USERDATA: 7 } as const;
/** libnftnl's NFTNL_UDATA_RULE_COMMENT. */
export const UDATA_COMMENT = 0;

export const SET = {
  TABLE: 1,
  NAME: 2,
  FLAGS: 3,
  KEY_TYPE: 4,
  KEY_LEN: 5,
  DATA_TYPE: 6,
  DATA_LEN: 7,
  DESC: 9,
  ID: 10,
  USERDATA: 13,
} as const;
export const SET_DESC_SIZE = 1;
export const SET_DESC_CONCAT = 2;
export const SET_FIELD_LEN = 1;
export const SET_FLAG = { INTERVAL: 4, MAP: 8, TIMEOUT: 0x10, EVAL: 0x20 } as const;
/** Type number of verdicts as set data. */
export const NFT_DATA_VERDICT = 0xffffff00;

export const ELEMENTS = { TABLE: 1, SET: 2, LIST: 3 } as const;
export const ELEMENT = { KEY: 1, DATA: 2, FLAGS: 3 } as const;
export const ELEMENT_INTERVAL_END = 1;
export const DATA = { VALUE: 1, VERDICT: 2 } as const;
export const VERDICT = { CODE: 1, CHAIN: 2 } as const;
export const VERDICTS = { DROP: 0, ACCEPT: 1, JUMP: -3, GOTO: -4, RETURN: -5 } as const;

export const LIST_ELEM = 1;
export const EXPR = { NAME: 1, DATA: 2 } as const;

/** nft's data types, which tell `nft list` how to print a set; concatenations hold 6 bits each. */
export const DATATYPE = { IPV4: 7, IPV6: 8, PROTO: 12, SERVICE: 13, MARK: 19, IFNAME: 41 } as const;
export const DATATYPE_BITS = 6;
/** Interface names take this many bytes in keys, padded with zeros. */
export const IFNAME_BYTES = 16;
