import behaviour from './behaviour.cjs';

export default behaviour;
