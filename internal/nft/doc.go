// Package nft writes the one nftables table of ours, inet pausa, over netlink.
// It owns every expression: callers put rules together from constructors that
// read like nft's own syntax, collect them in a Tx and commit that as one
// transaction, all or nothing. No other table is ever touched.
//
// A rule must be something that nft's syntax can say: `nft list ruleset` aborts
// for every user of the host on what it cannot print (a lookup whose key comes
// from another lookup, a dynamic map's value from a map). Rules that read IP
// headers begin with NFProto.
//
// Fake is the same table in memory: it refuses what the kernel would refuse and
// walks packets through the rules.
package nft
