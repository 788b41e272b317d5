package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// maxList bounds the elements of one message: their list is an attribute, whose
// length is 16 bits. What does not fit goes into further messages.
const maxList = 48 << 10

// batch is a transaction as the kernel takes it. Only its last message is
// acknowledged, so that the answers fit into any socket buffer: the kernel tells
// of each message that it refuses without being asked.
type batch struct {
	*messages
	ops []uint32 // the sequence number of each operation's first message
	tx  *Tx
	ids uint32 // given to sets
}

// encodeTx writes a transaction; first is the sequence number to begin with.
func encodeTx(tx *Tx, first uint32) (*batch, error) {
	b := &batch{messages: newMessages(first), tx: tx, ops: make([]uint32, len(tx.ops))}
	b.bracket(unix.NFNL_MSG_BATCH_BEGIN)
	for i := range tx.ops {
		b.ops[i] = b.next
		if err := b.op(&tx.ops[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", tx.ops[i].String(), err)
		}
	}
	b.acknowledge()
	b.bracket(unix.NFNL_MSG_BATCH_END)
	return b, nil
}

// last is the sequence number of the message that is acknowledged.
func (b *batch) last() uint32 { return b.next - 2 }

// cause names the operation of a message, "" for the transaction as a whole.
func (b *batch) cause(seq uint32) string {
	for i := len(b.ops) - 1; i >= 0; i-- {
		if int32(seq-b.ops[i]) >= 0 && seq != b.next-1 {
			return b.tx.ops[i].String()
		}
	}
	return ""
}

func (b *batch) op(o *op) error {
	switch o.kind {
	case opAddTable:
		b.begin(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
		b.text(unix.NFTA_TABLE_NAME, TableName)
		b.number(unix.NFTA_TABLE_FLAGS, 0)
	case opAddChain:
		b.addChain(o.chain)
	case opFlushChain:
		b.begin(unix.NFT_MSG_DELRULE, 0)
		b.text(unix.NFTA_RULE_TABLE, TableName)
		b.text(unix.NFTA_RULE_CHAIN, o.chain.Name)
	case opDeleteChain:
		b.begin(unix.NFT_MSG_DELCHAIN, 0)
		b.text(unix.NFTA_CHAIN_TABLE, TableName)
		b.text(unix.NFTA_CHAIN_NAME, o.chain.Name)
	case opAddRule:
		return b.addRule(o.chain.Name, o.rule)
	case opAddSet:
		b.addSet(o.set)
	case opFlushSet:
		b.begin(unix.NFT_MSG_DELSETELEM, 0)
		b.setName(o.set)
	case opDeleteSet:
		b.begin(unix.NFT_MSG_DELSET, 0)
		b.setName(o.set)
	case opAddElements, opDeleteElements:
		b.elements(o)
		return nil
	}
	b.end()
	return nil
}

func (m *messages) setName(s Set) {
	m.text(unix.NFTA_SET_TABLE, TableName) // as NFTA_SET_ELEM_LIST_TABLE
	m.text(unix.NFTA_SET_NAME, s.Name)     // as NFTA_SET_ELEM_LIST_SET
}

func (b *batch) addChain(c Chain) {
	b.begin(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	b.text(unix.NFTA_CHAIN_TABLE, TableName)
	b.text(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook != NoHook {
		at := b.nest(unix.NFTA_CHAIN_HOOK)
		b.number(unix.NFTA_HOOK_HOOKNUM, c.Hook.number())
		b.number(unix.NFTA_HOOK_PRIORITY, uint32(int32(c.Priority)))
		b.unnest(at)
		b.text(unix.NFTA_CHAIN_TYPE, c.Type)
	}
	b.end()
}

func (h Hook) number() uint32 {
	switch h {
	case Input:
		return unix.NF_INET_LOCAL_IN
	case Forward:
		return unix.NF_INET_FORWARD
	case Output:
		return unix.NF_INET_LOCAL_OUT
	case Postrouting:
		return unix.NF_INET_POST_ROUTING
	}
	return unix.NF_INET_PRE_ROUTING
}

func (b *batch) addRule(chain string, r Rule) error {
	b.begin(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
	b.text(unix.NFTA_RULE_TABLE, TableName)
	b.text(unix.NFTA_RULE_CHAIN, chain)
	at := b.nest(unix.NFTA_RULE_EXPRESSIONS)
	for _, e := range r.exprs() {
		data, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return err
		}
		b.attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data)
	}
	b.unnest(at)
	b.end()
	return nil
}

func (b *batch) addSet(s Set) {
	flags := uint32(0)
	if s.IsMap() {
		flags |= unix.NFT_SET_MAP
	}
	if s.Timeout > 0 {
		flags |= unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL
	}
	if len(s.Key) > 1 {
		flags |= nftables.NFT_SET_CONCAT
	}
	b.ids++
	key := concat(s.Key)
	b.begin(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	b.setName(s)
	b.number(unix.NFTA_SET_FLAGS, flags)
	b.number(unix.NFTA_SET_KEY_TYPE, key.GetNFTMagic())
	b.number(unix.NFTA_SET_KEY_LEN, key.Bytes)
	b.number(unix.NFTA_SET_ID, b.ids)
	switch {
	case s.Verdicts:
		b.number(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT)
		b.number(unix.NFTA_SET_DATA_LEN, 0)
	case len(s.Data) > 0:
		data := concat(s.Data)
		b.number(unix.NFTA_SET_DATA_TYPE, data.GetNFTMagic())
		b.number(unix.NFTA_SET_DATA_LEN, data.Bytes)
	}
	if s.Timeout > 0 {
		b.attr(unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(s.Timeout.Milliseconds())))
	}
	b.describe(s)
	b.end()
}

// describe tells the size of a set, and of the fields of its key, without which
// nft cannot print it.
func (b *batch) describe(s Set) {
	if s.Timeout <= 0 && len(s.Key) < 2 {
		return
	}
	at := b.nest(unix.NFTA_SET_DESC)
	if s.Timeout > 0 {
		b.number(unix.NFTA_SET_DESC_SIZE, dynamicSize)
	}
	if len(s.Key) > 1 {
		fields := b.nest(nftables.NFTA_SET_DESC_CONCAT)
		for _, t := range s.Key {
			field := b.nest(unix.NFTA_LIST_ELEM)
			b.number(1, t.datatype().Bytes) // NFTA_SET_FIELD_LEN
			b.unnest(field)
		}
		b.unnest(fields)
	}
	b.unnest(at)
}

func (b *batch) elements(o *op) {
	kind, data := uint16(unix.NFT_MSG_NEWSETELEM), true
	if o.kind == opDeleteElements {
		kind, data = unix.NFT_MSG_DELSETELEM, false
	}
	for i := 0; i < len(o.elems); {
		b.begin(kind, unix.NLM_F_CREATE)
		b.setName(o.set)
		list := b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		for ; i < len(o.elems) && len(b.buf)-list < maxList; i++ {
			b.element(&o.set, &o.elems[i], data)
		}
		b.unnest(list)
		b.end()
	}
}

func (m *messages) element(s *Set, e *Element, data bool) {
	item := m.nest(unix.NFTA_LIST_ELEM)
	key := m.nest(unix.NFTA_SET_ELEM_KEY)
	m.attr(unix.NFTA_DATA_VALUE, trim(s.Key, e.Key))
	m.unnest(key)
	switch {
	case !data:
	case e.Verdict.Kind != NoVerdict:
		at := m.nest(unix.NFTA_SET_ELEM_DATA)
		verdict := m.nest(unix.NFTA_DATA_VERDICT)
		m.number(unix.NFTA_VERDICT_CODE, uint32(int32(e.Verdict.lib().Kind)))
		if e.Verdict.Chain != "" {
			m.text(unix.NFTA_VERDICT_CHAIN, e.Verdict.Chain)
		}
		m.unnest(verdict)
		m.unnest(at)
	case len(e.Data) > 0:
		at := m.nest(unix.NFTA_SET_ELEM_DATA)
		m.attr(unix.NFTA_DATA_VALUE, trim(s.Data, e.Data))
		m.unnest(at)
	}
	m.unnest(item)
}

// String names an operation in errors.
func (o *op) String() string {
	switch o.kind {
	case opAddTable:
		return "add table " + TableName
	case opAddChain:
		return "add chain " + o.chain.Name
	case opFlushChain:
		return "flush chain " + o.chain.Name
	case opDeleteChain:
		return "delete chain " + o.chain.Name
	case opAddRule:
		return "add rule to chain " + o.chain.Name + ": " + o.rule.String()
	case opAddSet:
		return "add set " + o.set.Name
	case opFlushSet:
		return "flush set " + o.set.Name
	case opDeleteSet:
		return "delete set " + o.set.Name
	case opAddElements:
		return fmt.Sprintf("add %d elements to set %s", len(o.elems), o.set.Name)
	}
	return fmt.Sprintf("delete %d elements of set %s", len(o.elems), o.set.Name)
}
