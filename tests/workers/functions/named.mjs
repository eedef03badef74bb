import behaviour from './behaviour.cjs';

export const { events, initial, migrate, start } = behaviour;
export default behaviour.main;
